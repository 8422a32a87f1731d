/**
 * ONNX Runtime 1.29 and later, as Microsoft publishes it, keeps a device id in the user's cache folder and sends names,
 * hashes and timings of models over the network unless this variable says otherwise. It is read when ONNX Runtime starts,
 * so this module comes before anything that loads it. A value set by whoever runs the process is left alone.
 *
 * In a worker thread the process does not see what is set here: there the variable must be set before the process starts.
 */

process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
