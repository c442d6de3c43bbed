/** The doctor's findings, from machines made up for the test. */
import { describe, expect, test } from '@jest/globals';
import { examine, hasSysResource, inspectMachine, sessionOf, type Finding, type Machine } from '../../../src/cli/doctor.js';

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
  probe: { fuseMinor: 38, ioUring: true, memfdSeals: true },
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
    const probe = { fuseMinor: 38, ioUring: false, memfdSeals: true };
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
    const machine: Machine = { ...healthy, uringParameter, probe: { fuseMinor: 38, ioUring, memfdSeals: true } };
    expect(sessionOf(machine, wanted).session).toBe(session);
  });

  test('RDMA devices are named with their state', () => {
    expect(find({ infiniband: [{ device: 'rxe0', state: '4: ACTIVE' }] }, 'RDMA devices')?.value).toBe('rxe0 (4: ACTIVE)');
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
