export { EXIT, InvariantError, MambacError } from "./support/errors.js";
