/** Statistics as passes ask for them, from observers wherever they are kept. */

import type { StatRequest } from "./calibration.js";
import {
  type HistogramObserver,
  type MeanAbsObserver,
  type MomentObserver,
  middleOf,
  type Observer,
  type RangeObserver,
} from "./observers.js";
import type { Statistics } from "./statistics.js";

/** What reports ask for beyond what passes need. */
export interface ObservedStatistics extends Statistics {
  /** Fourth moment over the square of the second, of all elements, from the histogram (within 1 %): 3 for a normal distribution, more with outliers. */
  kurtosis(value: string): number;
}

/**
 * Answers from observers. `find` gives the observer of a request or null; `missing` makes the error to throw when a
 * statistic is asked for that was not taken.
 */
export function observedStatistics(
  find: (request: StatRequest) => Observer | null,
  missing: (request: StatRequest) => Error,
): ObservedStatistics {
  const get = <K extends Observer["kind"]>(
    wanted: K,
    ...requests: readonly [StatRequest, ...StatRequest[]]
  ): Kinds[K] => {
    for (const request of requests) {
      const observer = find(request);
      if (observer?.kind === wanted) return observer as Kinds[K];
    }
    throw missing(requests[0]);
  };
  return {
    channelAbsMax: (value) =>
      get("range", { value, kind: "absmax", perChannel: true }, { value, kind: "minmax", perChannel: true }).peaks(),
    channelMeanAbs: (value) => get("meanabs", { value, kind: "meanabs", perChannel: true }).means(),
    absMax: (value) =>
      get(
        "range",
        { value, kind: "absmax", perChannel: false },
        { value, kind: "minmax", perChannel: false },
        { value, kind: "absmax", perChannel: true },
        { value, kind: "minmax", perChannel: true },
      )
        .peaks()
        .reduce((largest, peak) => Math.max(largest, peak), 0),
    range: (value) => {
      const { low, high } = get("range", { value, kind: "minmax", perChannel: false });
      return { low: low[0] ?? 0, high: high[0] ?? 0 };
    },
    percentile: (value, share) =>
      get("percentile", { value, kind: "percentile", perChannel: false }).percentile(share)[0] ?? 0,
    kurtosis: (value) => {
      const histogram = get("percentile", { value, kind: "percentile", perChannel: false });
      let [second, fourth] = [0, 0];
      for (const [bin, count] of histogram.bins(0)) {
        const square = middleOf(bin) ** 2;
        second += count * square;
        fourth += count * square ** 2;
      }
      return second === 0 ? 0 : (fourth * histogram.count) / second ** 2;
    },
    secondMoment: (value) => {
      const observer = get("second-moment", { value, kind: "second-moment", perChannel: true });
      const { rows: size, data } = observer.rawSum();
      const { count } = observer;
      return { size, count, matrix: data.map((sum) => sum / Math.max(1, count)) };
    },
  };
}

interface Kinds {
  readonly range: RangeObserver;
  readonly meanabs: MeanAbsObserver;
  readonly percentile: HistogramObserver;
  readonly "second-moment": MomentObserver;
}
