// The gates of the CUDA kernels (BENCH.md) and their JSON. Knows no CUDA, so that what is said without a device is tested, too.
#pragma once
#include <math.h>
#include <stdio.h>

#include <string>
#include <vector>

struct Gate {
  const char *key, *name;
  double minimum, stretch;
  bool at_most;  // the value is a time; otherwise a ratio that wants to be large
  bool met(double value) const { return at_most ? value <= minimum : value >= minimum; }
};

constexpr Gate kGates[] = {
    {"G1", "G1 F32 / device copy", 0.80, 0.90, false}, {"G1", "G1 F16 / device copy", 0.80, 0.90, false},
    {"G2", "G2 H4 / device copy", 0.60, 0.75, false},  {"G3", "G3 H4 over F32", 4.0, 5.5, false},
    {"G3", "G3 H4 over F16", 2.0, 2.8, false},         {"G4", "G4 H4 at 64 heads or fewer, us", 4.0, 2.5, true},
};
constexpr size_t kGateCount = sizeof kGates / sizeof *kGates;

// `values`: of every gate in order; empty: none was run. False where a gate is missed.
inline bool gates_json(const std::vector<double>& values, std::string* json) {
  bool met = true;
  *json += "\"gates\": [";
  for (size_t i = 0; i < kGateCount; i++) {
    const Gate& g = kGates[i];
    char text[240];
    int n = snprintf(text, sizeof text, "%s\n    {\"gate\": \"%s\", \"minimum\": %.2f, \"stretch\": %.2f, ", i == 0 ? "" : ",", g.name, g.minimum, g.stretch);
    if (values.empty()) {
      snprintf(text + n, sizeof text - (size_t)n, "\"result\": \"not run\"}");
    } else {
      met = met && g.met(values[i]);
      snprintf(text + n, sizeof text - (size_t)n, "\"value\": %.3f, \"result\": \"%s\"}", values[i], g.met(values[i]) ? "met" : "missed");
    }
    *json += text;
  }
  *json += "]";
  return met;
}

// What the harness prints where there is no device, and how it ends: asked for gates (`enforce`), showing none is no success.
constexpr int kNotRun = 3;
inline int not_run(bool enforce, std::string* json) {
  *json = "{\n  \"device\": null, \"result\": \"not run: no CUDA device\",\n  ";
  gates_json({}, json);
  *json += "\n}\n";
  return enforce ? kNotRun : 0;
}
