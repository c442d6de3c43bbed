/**
 * What a mount counts of its appliances, per transport and link: as native tells it, for Prometheus, and for people.
 */

export interface LinkCounters {
  operations: number;
  bytesRead: number;
  bytesWritten: number;
  failures: number;
  refused: number; // at once, because the breaker was open
  retries: number;
  connects: number;
  losses: number; // of connections that had been made
  connections: number; // that there are now, one per thread at most
  latencyNs: number; // of all that succeeded, together
  latencyLog2Ns: number[]; // how many took [2^n, 2^(n+1)) ns
}
export interface LinkStatistics extends LinkCounters {
  transport: string; // none: nothing was connected
  address: string; // address:port; '' over no network
}
export interface ApplianceStatistics extends LinkCounters {
  state: 'idle' | 'connecting' | 'up' | 'down'; // down: the breaker is open
  transport: string;
  dirtyBytes: number;
  breakerOpenings: number;
  links: LinkStatistics[];
}
export type FabricStatistics = Record<string, ApplianceStatistics>;

export const fabricOf = (statistics: Record<string, unknown>): FabricStatistics => (statistics['fabric'] ?? {}) as FabricStatistics;

/** The value of a label in Prometheus' text format. */
export const quoted = (value: string): string => `"${value.replace(/[\\"]/g, (letter) => `\\${letter}`).replace(/\n/g, '\\n')}"`;

const linkCounters = [
  ['operations_total', 'operations'],
  ['read_bytes_total', 'bytesRead'],
  ['written_bytes_total', 'bytesWritten'],
  ['failures_total', 'failures'],
  ['refused_total', 'refused'],
  ['retries_total', 'retries'],
  ['connects_total', 'connects'],
  ['losses_total', 'losses'],
] as const satisfies readonly (readonly [string, keyof LinkCounters])[];

/** Latencies below and above these are of no use to anybody who draws them: from about 1 us to 17 s. */
const [firstBucket, lastBucket] = [9, 33];

/** `extmem_fabric_...` with a mount, an appliance, a transport and a link (its address) each. */
export function fabricMetrics(fabric: FabricStatistics, mountPoint: string): string[] {
  const lines: string[] = [];
  const families = new Map<string, string[]>();
  const tell = (name: string, type: string, labels: string, value: number, suffix = ''): void => {
    const family = families.get(name) ?? [`# TYPE extmem_fabric_${name} ${type}`];
    family.push(`extmem_fabric_${name}${suffix}{${labels}} ${value}`);
    families.set(name, family);
  };
  for (const [appliance, statistics] of Object.entries(fabric)) {
    const whose = `mount=${quoted(mountPoint)},appliance=${quoted(appliance)}`;
    tell('breaker_open', 'gauge', whose, Number(statistics.state === 'down'));
    tell('breaker_openings_total', 'counter', whose, statistics.breakerOpenings);
    tell('dirty_bytes', 'gauge', whose, statistics.dirtyBytes);
    for (const link of statistics.links) {
      const labels = `${whose},transport=${quoted(link.transport)},link=${quoted(link.address)}`;
      for (const [name, counter] of linkCounters) tell(name, 'counter', labels, link[counter]);
      tell('connections', 'gauge', labels, link.connections);
      let below = 0;
      link.latencyLog2Ns.forEach((count, bucket) => {
        below += count;
        if (bucket < firstBucket || bucket > lastBucket) return;
        tell('latency_seconds', 'histogram', `${labels},le="${2 ** (bucket + 1) / 1e9}"`, below, '_bucket');
      });
      tell('latency_seconds', 'histogram', `${labels},le="+Inf"`, below, '_bucket');
      tell('latency_seconds', 'histogram', labels, link.latencyNs / 1e9, '_sum');
      tell('latency_seconds', 'histogram', labels, below, '_count');
    }
  }
  for (const family of families.values()) lines.push(...family);
  return lines;
}

/** The upper end of the bucket that so many of all lie in or below, in ns; undefined: nothing was counted. */
export function percentileNs({ latencyLog2Ns }: LinkCounters, share: number): number | undefined {
  const wanted = latencyLog2Ns.reduce((sum, count) => sum + count, 0) * share;
  if (wanted === 0) return undefined;
  let below = 0;
  const bucket = latencyLog2Ns.findIndex((count) => (below += count) >= wanted);
  return 2 ** (bucket + 1);
}
