/** What went wrong with a file, in words for people. */

const PROBLEMS: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EBUSY: "something else is using it",
  EDQUOT: "the disk quota is used up",
  EFBIG: "it would be larger than files may be here",
  EISDIR: "it is a folder",
  EMFILE: "too many files are open",
  ENAMETOOLONG: "its name is too long",
  ENOENT: "it does not exist",
  ENOSPC: "the disk is full",
  ENOTDIR: "a part of its path is a file",
  EPERM: "permission denied",
  EROFS: "the file system is read-only",
};

/** The reason why a file of JSON could not be had: that it cannot be read, or that it is something else. */
export function jsonFileProblem(cause: unknown): string {
  return cause instanceof SyntaxError ? "it is not JSON" : fileProblem(cause);
}

/** The reason of a failed file operation; the message of any other error. */
export function fileProblem(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const code = "code" in cause && typeof cause.code === "string" ? cause.code : "";
  return PROBLEMS[code] ?? cause.message;
}
