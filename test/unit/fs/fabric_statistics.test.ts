/** A mount's counters of its appliances, told to Prometheus and to people. */
import { describe, expect, test } from '@jest/globals';
import { describeMount } from '../../../src/cli/status.js';
import { percentileNs, type ApplianceStatistics, type LinkStatistics } from '../../../src/fs/fabric_statistics.js';
import { metricsOf } from '../../../src/fs/mount_control.js';

function link(address: string, more: Partial<LinkStatistics> = {}): LinkStatistics {
  return {
    transport: 'tcp',
    address,
    operations: 3,
    bytesRead: 8192,
    bytesWritten: 0,
    failures: 1,
    refused: 0,
    retries: 2,
    connects: 1,
    losses: 0,
    connections: 1,
    latencyNs: 30_000,
    // 1 of 8 to 16 us, 1 of 16 to 33 us
    latencyLog2Ns: Array.from({ length: 40 }, (_, bucket) => Number(bucket === 13 || bucket === 14)),
    ...more,
  };
}

const appliance: ApplianceStatistics = {
  ...link(''),
  state: 'down',
  dirtyBytes: 4096,
  breakerOpenings: 2,
  refused: 7,
  links: [link('10.0.0.2:7071'), link('10.1.0.2:7071', { connections: 0 })],
};

describe('metrics', () => {
  const lines = metricsOf({ cache: { hits: 3 }, fabric: { 'a"1': appliance } }, '/mnt/x').split('\n');

  test('each link has its counters, under labels', () => {
    const labels = 'mount="/mnt/x",appliance="a\\"1",transport="tcp",link="10.1.0.2:7071"';
    expect(lines).toContain(`extmem_fabric_operations_total{${labels}} 3`);
    expect(lines).toContain(`extmem_fabric_retries_total{${labels}} 2`);
    expect(lines).toContain(`extmem_fabric_connections{${labels}} 0`);
    expect(lines).toContain('extmem_mount_cache_hits{mount="/mnt/x"} 3');
  });

  test('the breaker is told per appliance', () => {
    expect(lines).toContain('extmem_fabric_breaker_open{mount="/mnt/x",appliance="a\\"1"} 1');
    expect(lines).toContain('extmem_fabric_breaker_openings_total{mount="/mnt/x",appliance="a\\"1"} 2');
  });

  test('latencies are a histogram: buckets grow to the count, and each name is declared once', () => {
    const of = (suffix: string): number[] =>
      lines
        .filter((line) => line.startsWith(`extmem_fabric_latency_seconds${suffix}{`) && line.includes('10.0.0.2'))
        .map((line) => Number(line.split(' ')[1]));
    const buckets = of('_bucket');
    expect(buckets).toEqual([...buckets].sort((one, other) => one - other));
    expect(buckets.at(-1)).toBe(2);
    expect(of('_count')).toEqual([2]);
    expect(of('_sum')).toEqual([30e-6]);
    const declared = lines.filter((line) => line.startsWith('# TYPE'));
    expect(new Set(declared).size).toBe(declared.length);
  });
});

test('people are told of the breaker, of each link, and how long operations take', () => {
  const text = describeMount({ mountPoint: '/mnt/x', pid: 1, fabric: { a1: appliance } }).join('\n');
  expect(text).toContain('appliance a1: tcp, down: refused at once, and probed; 3 operations, half within 16 us, 99 % within 33 us');
  expect(text).toContain('7 refused while it was down (2 times)');
  expect(text).toContain('link tcp 10.0.0.2:7071: up');
  expect(text).toContain('link tcp 10.1.0.2:7071: not connected');
});

test('nothing counted has no percentile', () => {
  expect(percentileNs(link('', { latencyLog2Ns: [0, 0] }), 0.5)).toBeUndefined();
});
