/**
 * Sort-and-cluster of Quamba2: an order of heads and of channels inside heads, such that channels of like size lie
 * together and a few scales serve them all.
 * Source: H.-Y. Chiang et al., "Quamba2: a robust and scalable post-training quantization framework for selective state
 * space models" (2025), 4.1. Channels of a head cluster are cut by the optimal segmentation of their ranks (dynamic
 * programming), where the paper runs k-means and needs luck for contiguous clusters.
 */

import { invariant } from "../support/errors.js";

/** All tables count within one SSD group of heads; new places refer to the order that the tables define. */
export interface SortedChannels {
  readonly groups: number;
  readonly headClusters: number;
  readonly channelClusters: number;
  /** [heads]: the old head at each new place. */
  readonly headOrder: Int32Array;
  /** [heads * channels]: the old channel (head * channels + channel) at each new place. */
  readonly channelOrder: Int32Array;
  /** [groups, headClusters + 1]: where clusters begin and end, in heads of the group. */
  readonly headRanges: Int32Array;
  /** [groups, headClusters, channelClusters + 1]: where clusters begin and end, in channels of a head. */
  readonly channelRanges: Int32Array;
}

/**
 * Sorts channels [heads, channels] of `groups` equal runs of heads by a statistic of their size. Fewer clusters come out
 * where there are fewer heads or channels than asked for. Equal statistics give equal orders.
 */
export function sortAndCluster(
  sizes: ArrayLike<number>,
  dims: { readonly groups: number; readonly heads: number; readonly channels: number },
  wanted: { readonly heads: number; readonly channels: number } = { heads: 4, channels: 4 },
): SortedChannels {
  const { groups, heads, channels } = dims;
  invariant(sizes.length === heads * channels && heads % groups === 0, "sizes that do not fit the heads");
  const perGroup = heads / groups;
  const headClusters = Math.min(wanted.heads, perGroup);
  const channelClusters = Math.min(wanted.channels, channels);
  const headOrder = new Int32Array(heads);
  const channelOrder = new Int32Array(heads * channels);
  const headRanges = new Int32Array(groups * (headClusters + 1));
  const channelRanges = new Int32Array(groups * headClusters * (channelClusters + 1));
  const ranks = Array.from({ length: heads }, (_, head) => ascending(sizes, head * channels, channels));
  const sorted = ranks.map((rank) => Float64Array.from(rank, (channel) => sizes[channel]!));
  for (let g = 0; g < groups; g++) {
    const members = Array.from({ length: perGroup }, (_, i) => g * perGroup + i);
    const clusters = wardClusters(
      members.map((head) => unitLength(sorted[head]!)),
      headClusters,
    );
    let place = 0;
    clusters.forEach((cluster, c) => {
      for (const member of cluster) {
        const head = members[member]!;
        headOrder[g * perGroup + place] = head;
        channelOrder.set(ranks[head]!, (g * perGroup + place) * channels);
        place += 1;
      }
      headRanges[g * (headClusters + 1) + c + 1] = place;
      const cuts = optimalSegments(
        cluster.map((member) => sorted[members[member]!]!),
        channelClusters,
      );
      channelRanges.set(cuts, (g * headClusters + c) * (channelClusters + 1));
    });
  }
  return { groups, headClusters, channelClusters, headOrder, channelOrder, headRanges, channelRanges };
}

/** Indices start .. start + count by ascending value; of equals, the lower first. */
function ascending(values: ArrayLike<number>, start: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => start + i).sort((a, b) => values[a]! - values[b]! || a - b);
}

function unitLength(vector: Float64Array): Float64Array {
  const length = Math.hypot(...vector);
  return length === 0 ? vector : vector.map((value) => value / length);
}

/**
 * Agglomerative clusters of points under Ward's criterion: always the merge that adds least to the squared distances from
 * the means; of equals, the first. Members ascend, and so do first members.
 */
export function wardClusters(points: readonly Float64Array[], count: number): number[][] {
  let clusters = points.map((point, i) => ({ members: [i], mean: point }));
  while (clusters.length > Math.max(count, 1)) {
    let best = { cost: Number.POSITIVE_INFINITY, a: 0, b: 1 };
    for (let a = 0; a < clusters.length; a++) {
      for (let b = a + 1; b < clusters.length; b++) {
        const cost = mergeCost(clusters[a]!, clusters[b]!);
        if (cost < best.cost) best = { cost, a, b };
      }
    }
    const [a, b] = [clusters[best.a]!, clusters[best.b]!];
    const [n, m] = [a.members.length, b.members.length];
    const merged = {
      members: [...a.members, ...b.members].sort((x, y) => x - y),
      mean: a.mean.map((value, i) => (n * value + m * b.mean[i]!) / (n + m)),
    };
    clusters = clusters.flatMap((cluster, i) => (i === best.a ? [merged] : i === best.b ? [] : [cluster]));
  }
  return clusters.map(({ members }) => members).sort((x, y) => x[0]! - y[0]!);
}

interface Cluster {
  readonly members: readonly number[];
  readonly mean: Float64Array;
}

function mergeCost(a: Cluster, b: Cluster): number {
  let distance = 0;
  for (let i = 0; i < a.mean.length; i++) distance += (a.mean[i]! - b.mean[i]!) ** 2;
  const [n, m] = [a.members.length, b.members.length];
  return (n * m * distance) / (n + m);
}

/**
 * Cuts positions 0 .. P into `count` runs with the least sum of squared distances from the mean of the run, where position
 * p is the point (rows[0][p], rows[1][p], ...). Gives the count + 1 ends; no run is empty. Of equals, the earliest cuts.
 */
export function optimalSegments(rows: readonly Float64Array[], count: number): Int32Array {
  const length = rows[0]?.length ?? 0;
  invariant(count >= 1 && count <= length, `${count} runs of ${length} positions`);
  const cost = runCosts(rows, length);
  // least[k][p]: best cost of cutting the first p positions into k runs; from[k][p]: where the last of them begins.
  const least = Array.from({ length: count + 1 }, () => new Float64Array(length + 1).fill(Number.POSITIVE_INFINITY));
  const from = Array.from({ length: count + 1 }, () => new Int32Array(length + 1));
  least[0]![0] = 0;
  for (let k = 1; k <= count; k++) {
    for (let end = k; end <= length; end++) {
      for (let start = k - 1; start < end; start++) {
        const total = least[k - 1]![start]! + cost[start * (length + 1) + end]!;
        if (total < least[k]![end]!) {
          least[k]![end] = total;
          from[k]![end] = start;
        }
      }
    }
  }
  const ends = new Int32Array(count + 1);
  ends[count] = length;
  for (let k = count; k > 0; k--) ends[k - 1] = from[k]![ends[k]!]!;
  return ends;
}

/** cost[start, end]: squared distances of positions start .. end from their mean, by Welford's update. */
function runCosts(rows: readonly Float64Array[], length: number): Float64Array {
  const cost = new Float64Array((length + 1) * (length + 1));
  const mean = new Float64Array(rows.length);
  for (let start = 0; start < length; start++) {
    mean.fill(0);
    let total = 0;
    for (let p = start; p < length; p++) {
      const seen = p - start + 1;
      for (let r = 0; r < rows.length; r++) {
        const shift = rows[r]![p]! - mean[r]!;
        mean[r]! += shift / seen;
        total += shift * (rows[r]![p]! - mean[r]!);
      }
      cost[start * (length + 1) + p + 1] = total;
    }
  }
  return cost;
}

/**
 * Largest magnitude of each cluster [groups, headClusters, channelClusters], from the magnitudes of the old channels
 * [heads * channels].
 */
export function clusterPeaks(peaks: ArrayLike<number>, sorted: SortedChannels): Float64Array {
  const { groups, headClusters, channelClusters, headOrder, channelOrder, headRanges, channelRanges } = sorted;
  const perGroup = headOrder.length / groups;
  const channels = channelOrder.length / headOrder.length;
  const result = new Float64Array(groups * headClusters * channelClusters);
  for (let g = 0; g < groups; g++) {
    for (let c = 0; c < headClusters; c++) {
      const heads = g * (headClusters + 1) + c;
      for (let k = 0; k < channelClusters; k++) {
        const at = (g * headClusters + c) * (channelClusters + 1) + k;
        let peak = 0;
        for (let head = headRanges[heads]!; head < headRanges[heads + 1]!; head++) {
          const row = (g * perGroup + head) * channels;
          for (let p = channelRanges[at]!; p < channelRanges[at + 1]!; p++) {
            peak = Math.max(peak, peaks[channelOrder[row + p]!]!);
          }
        }
        result[(g * headClusters + c) * channelClusters + k] = peak;
      }
    }
  }
  return result;
}

/** The number of the cluster that each channel is in, [heads * channels] in the new order; clusters count from 0. */
export function clusterNumbers(sorted: SortedChannels): Int32Array {
  const { groups, headClusters, channelClusters, headOrder, channelOrder, headRanges, channelRanges } = sorted;
  const perGroup = headOrder.length / groups;
  const channels = channelOrder.length / headOrder.length;
  const result = new Int32Array(channelOrder.length);
  for (let g = 0; g < groups; g++) {
    for (let c = 0; c < headClusters; c++) {
      const heads = g * (headClusters + 1) + c;
      const cluster = g * headClusters + c;
      for (let head = headRanges[heads]!; head < headRanges[heads + 1]!; head++) {
        for (let k = 0; k < channelClusters; k++) {
          const at = cluster * (channelClusters + 1) + k;
          const row = (g * perGroup + head) * channels;
          result.fill(cluster * channelClusters + k, row + channelRanges[at]!, row + channelRanges[at + 1]!);
        }
      }
    }
  }
  return result;
}
