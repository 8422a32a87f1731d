/** What passes ask of calibration, without knowing where it comes from. */

/** Statistics of activations over calibration data. Asking for one that was not requested is an error. */
export interface Statistics {
  /** Largest magnitude of each channel (last axis). */
  channelAbsMax(value: string): Float64Array;
  /** Mean magnitude of each channel. */
  channelMeanAbs(value: string): Float64Array;
  /** Largest magnitude. */
  absMax(value: string): number;
  /** Smallest and largest value. */
  range(value: string): { readonly low: number; readonly high: number };
  /** Magnitude below which the given share of all elements lies. */
  percentile(value: string, share: number): number;
  /** Mean of x x^T over tokens, [size, size] row-major, and the number of tokens. */
  secondMoment(value: string): { readonly size: number; readonly count: number; readonly matrix: Float64Array };
}
