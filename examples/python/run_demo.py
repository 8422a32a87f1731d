"""python run_demo.py MODEL.onnx PROMPT [LOGITS.f32]: continue a prompt, byte by byte, in stock ONNX Runtime."""
import json, os, sys, numpy
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when ONNX Runtime is imported
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pairs = json.loads(session.get_modelmeta().custom_metadata_map["mambac.states"])
types = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
state = {i.name: numpy.zeros([1, *i.shape[1:]], types[i.type]) for i in session.get_inputs() if i.name != "input_ids"}
text, tokens, logits = sys.argv[2].encode(), list(sys.argv[2].encode()), []
for _ in range(40):
    results = session.run(None, {"input_ids": numpy.array([tokens], "int64"), **state})
    outputs = dict(zip([o.name for o in session.get_outputs()], results))
    state = {pair["input"]: outputs[pair["output"]] for pair in pairs}
    logits.append(outputs["logits"][0, -1])
    tokens = [int(logits[-1].argmax())]
    text += bytes(tokens)
print(text.decode(errors="replace"))
if len(sys.argv) > 3: numpy.concatenate(logits).astype("float32").tofile(sys.argv[3])
