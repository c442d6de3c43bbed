/** The doctor's findings, from machines made up for the test. */
import { describe, expect, test } from '@jest/globals';
import { examine, hasSysResource, inspectMachine, sessionOf, transportsOf, type Finding, type Machine } from '../../../src/cli/doctor.js';

const healthyProbe = { fuseMinor: 38, ioUring: true, memfdSeals: true, rdmaLibraries: true, rdma: [] };

const healthy: Machine = {
  root: true,
  sysResource: true,
  kernel: '6.1.0',
  cpus: 4,
  fuseDevice: true,
  fusermount: true,
  fuseConf: '',
  uringParameter: undefined,
  infiniband: [],
  meminfo: 'MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\nHugePages_Free: 0\n',
  limits:
    'Max locked memory         8388608              8388608              bytes\nMax open files            65536                65536                files\n',
  maxMapCount: 65530,
  shmemHuge: 'always within_size advise [never] deny force',
  probe: healthyProbe,
};

function find(machine: Partial<Machine>, name: string): Finding | undefined {
  return examine({ ...healthy, ...machine }, { cacheBytes: 1024 ** 3 }).find((finding) => finding.name === name);
}

describe('doctor', () => {
  test('a healthy machine lacks nothing', () => {
    expect(examine(healthy, { cacheBytes: 1024 ** 3 }).filter(({ verdict }) => verdict !== 'ok')).toEqual([]);
  });

  test('without /dev/fuse the main job cannot work, and how to get it is said', () => {
    expect(find({ fuseDevice: false }, 'FUSE device')).toMatchObject({
      verdict: 'missing',
      advice: expect.stringContaining('modprobe fuse') as unknown,
    });
  });

  test('an addon that does not load is missing, with the reason', () => {
    expect(find({ probe: 'not built' }, 'native addon')).toMatchObject({ verdict: 'missing', value: 'not built', advice: 'scripts/setup' });
  });

  test('fusermount3 is needed without root only', () => {
    expect(find({ fusermount: false }, 'fusermount3')?.verdict).toBe('ok');
    expect(find({ fusermount: false, root: false }, 'fusermount3')).toMatchObject({
      verdict: 'missing',
      advice: expect.stringContaining('fuse3') as unknown,
    });
  });

  test.each([
    [undefined, /not in this kernel/],
    ['N', /switched off/],
    ['Y', /switched on/],
  ])('io_uring parameter %p is explained', (uringParameter, expected) => {
    expect(find({ uringParameter }, 'FUSE over io_uring')?.value).toMatch(expected);
  });

  test('io_uring switched on for FUSE but forbidden to programs: how to allow it', () => {
    const probe = { ...healthyProbe, ioUring: false };
    expect(find({ uringParameter: 'Y', probe }, 'FUSE over io_uring')).toMatchObject({
      verdict: 'advice',
      advice: expect.stringContaining('io_uring_disabled') as unknown,
    });
  });

  test.each([
    ['Y', true, 'auto', 'io_uring'],
    ['Y', true, 'off', '/dev/fuse'],
    ['Y', false, 'auto', '/dev/fuse'],
    ['N', true, 'auto', '/dev/fuse'],
    [undefined, true, 'auto', '/dev/fuse'],
    ['Y', true, 'on', 'io_uring'],
    ['N', true, 'on', 'none'],
  ] as const)('parameter %p, io_uring allowed %p, --io-uring=%s: the session is %s', (uringParameter, ioUring, wanted, session) => {
    const machine: Machine = { ...healthy, uringParameter, probe: { ...healthyProbe, ioUring } };
    expect(sessionOf(machine, wanted).session).toBe(session);
  });

  const port = { device: 'rxe0', port: 1, state: 'active', mtu: 4096, onDemandPaging: false };
  const withPort = (changed: Partial<typeof port>): Partial<Machine> => ({
    infiniband: ['rxe0'],
    probe: { ...healthyProbe, rdma: [{ ...port, ...changed }] },
  });

  test('RDMA ports are named with what they can do, and verbs would be used where one is active', () => {
    expect(find(withPort({}), 'RDMA devices')).toEqual({
      name: 'RDMA devices',
      verdict: 'ok',
      value: 'rxe0 port 1 (active, MTU 4096, no on-demand paging); verbs would be used',
    });
    expect(transportsOf({ ...healthy, ...withPort({}) }, 'auto')['other hosts']).toContain('verbs');
    expect(transportsOf(healthy, 'auto')['other hosts']).toBe('tcp');
    expect(transportsOf(healthy, 'verbs')).toEqual({ 'every host': 'verbs' });
  });

  test('an RDMA device that cannot be used well is advice: no port up, no library, small packets, little locked memory', () => {
    expect(find(withPort({ state: 'down' }), 'RDMA devices')?.value).toContain('would not be used');
    expect(transportsOf({ ...healthy, ...withPort({ state: 'down' }) }, 'auto')['other hosts']).toBe('tcp');
    expect(find({ infiniband: ['rxe0'], probe: { ...healthyProbe, rdmaLibraries: false } }, 'RDMA devices')?.advice).toContain(
      'librdmacm1',
    );
    expect(find(withPort({ mtu: 1024 }), 'RDMA devices')?.advice).toContain('mtu 4200');
    expect(find({ ...withPort({}), root: false }, 'RDMA devices')?.advice).toContain('memlock');
    expect(find(withPort({}), 'RDMA devices')?.verdict).toBe('ok');
  });

  test('low limits are advice, not a failure', () => {
    const limits =
      'Max locked memory         65536                65536              bytes\nMax open files            1024                1024                files\n';
    expect(find({ limits, root: false }, 'locked memory')?.verdict).toBe('advice');
    expect(find({ limits, root: true }, 'locked memory')?.verdict).toBe('ok');
    expect(find({ limits }, 'open files')?.verdict).toBe('advice');
    expect(find({ limits: limits.replace('65536  ', 'unlimited'), root: false }, 'locked memory')?.value).toContain('unlimited');
  });

  test.each([
    [{}, 'ok', /protected/],
    [{ sysResource: false }, 'advice', /CAP_SYS_RESOURCE/],
    [{ root: false, sysResource: false }, 'advice', /1 %.*dirty/],
  ])('when memory is short: %p is %s', (machine, verdict, value) => {
    expect(find(machine, 'memory pressure')).toMatchObject({ verdict, value: expect.stringMatching(value) as unknown });
  });

  test('a capability is read from the process itself', () => {
    expect(hasSysResource('CapEff:\t000001ffffffffff\n')).toBe(true);
    expect(hasSysResource('CapEff:\t000001fffeffffff\n')).toBe(false);
  });

  test('this machine can be inspected', async () => {
    const machine = await inspectMachine();
    expect(machine.meminfo).toContain('MemAvailable');
    expect(machine.limits).toContain('Max open files');
    expect(machine.maxMapCount).toBeGreaterThan(0);
  });
});
