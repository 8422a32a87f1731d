#include "general.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

// States stored row by row do not depend on how channels are divided into pseudo-heads: one for each group of B and C.
ScanArgs regrouped(ScanArgs a) {
  if (a.family == Family::kMamba1 && (a.format == Format::kF32 || a.format == Format::kF16)) {
    a.head_dim = a.heads * a.head_dim / a.groups;
    a.heads = a.groups;
  }
  return a;
}

struct GeneralPlan {
  int64_t blocks, scratch;
  bool shared;
};
GeneralPlan plan_general(const ScanArgs& a, const Device& d) {
  const int64_t scratch = (general_scratch(a) + 3) & ~(int64_t)3, tasks = a.batch * a.heads;
  const bool shared = scratch <= d.shared_bytes / 4;
  const int64_t most = (shared ? 8 : 2) * (int64_t)d.multiprocessors;
  return {tasks < most ? tasks : most, scratch, shared};
}

template <class T>
int launch_general(const GeneralArgs& g, const Grid& grid, void* stream) {
  return g.scan.replay > 0 ? launch(replay_general<T>, grid, stream, g) : launch(scan_general<T>, grid, stream, g);
}

// Of all sequences.
int64_t state_bytes(const ScanArgs& a) {
  if (a.replay > 0) return a.batch * replay_layout(a).bytes;
  const int64_t p = a.head_dim, n = a.d_state;
  return a.batch * a.heads * (a.row_step != nullptr ? code_bytes(a.format, p, n) : head_bytes(a.format, p, n));
}

}  // namespace

bool pick_fast(const ScanArgs& args, const Device& d, Choice* out) {
  const ScanArgs a = out->scan = regrouped(args);
  if (!fits_fast(a)) return false;
  if (a.replay > 0) return pick_replay(a, d, out);
  if (a.row_step != nullptr) return pick_static(a, d, out);
  if (a.length > 1) return pick_tokens(a, out);
  if (a.format == Format::kF32 || a.format == Format::kF16) return pick_plain(a, out);
  return a.family == Family::kMamba2 ? pick_mamba2_packed(a, d, out) : pick_mamba1_packed(a, d, out);
}

int scan_workspace(const ScanArgs& args, int64_t* bytes) {
  *bytes = 0;
  if (args.length == 0 || args.batch == 0) return 0;
  Device d;
  if (const int e = current_device(&d)) return e;
  Choice choice;
  if (pick_fast(args, d, &choice)) return 0;
  const GeneralPlan plan = plan_general(args, d);
  if (!plan.shared) *bytes = plan.blocks * plan.scratch * 4;
  return 0;
}

int launch_scan(const ScanArgs& args, void* workspace, void* stream) {
  if (args.batch == 0) return 0;
  if (args.length == 0) return args.past == args.present ? 0 : copy_on_device(args.present, args.past, (size_t)state_bytes(args), stream);
  Device d;
  if (const int e = current_device(&d)) return e;
  Choice choice;
  int code;
  if (pick_fast(args, d, &choice)) {
    code = launch(choice.kernel, choice.grid, stream, choice.scan);
    if (code == 0 && args.replay > 0 && args.length == 1) code = launch_replay_round(args, d, stream);
  } else {
    const GeneralPlan plan = plan_general(args, d);
    const GeneralArgs g = {args, plan.shared ? nullptr : (float*)workspace, plan.scratch};
    if (!plan.shared && workspace == nullptr) return kErrorInvalidValue;
    const Grid grid = {plan.blocks, 1, kGeneralThreads, plan.shared ? (size_t)plan.scratch * 4 : 0};
    code = args.half ? launch_general<uint16_t>(g, grid, stream) : launch_general<float>(g, grid, stream);
  }
  return code == 0 && args.replay > 0 ? launch_replay_finish(args, stream) : code;
}

}  // namespace cuda
}  // namespace mambac
