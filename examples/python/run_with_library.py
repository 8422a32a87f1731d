"""python run_with_library.py MODEL.onnx LIBRARY PROMPT: continue a prompt, byte by byte, on mambac's kernels."""
import json, os, sys, numpy
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when ONNX Runtime is imported
import onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[2])  # without it the functions in the model run instead
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pairs = json.loads(session.get_modelmeta().custom_metadata_map["mambac.states"])
present = {pair["input"]: pair["output"] for pair in pairs}
types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
binding = session.io_binding()
for past in (value for value in session.get_inputs() if value.name in present):
    state = onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros([1, *past.shape[1:]], types[past.type]))
    binding.bind_ortvalue_input(past.name, state)  # one buffer as past and present: kernels update it in place,
    binding.bind_ortvalue_output(present[past.name], state)  # which only kernels may
text, tokens = sys.argv[3].encode(), list(sys.argv[3].encode())
for _ in range(40):
    binding.bind_cpu_input("input_ids", numpy.array([tokens], "int64"))
    binding.bind_output("logits")  # anew each time: an output that is left bound keeps the shape of the last run
    session.run_with_iobinding(binding)
    tokens = [int(binding.get_outputs()[-1].numpy()[0, -1].argmax())]
    text += bytes(tokens)
print(text.decode(errors="replace"))
