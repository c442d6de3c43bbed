/** The process that serves a mount when memory is gone: it is not killed, it does not wait for itself, its cache is not taken away. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { hasSysResource } from '../../src/cli/doctor.js';
import { succeed, TestCluster } from './cluster.js';

describe('who serves a mount', () => {
  const cluster = new TestCluster({ cache: '16M' });
  beforeAll(() => cluster.start());
  afterAll(() => cluster.stop());

  const PF_MEMALLOC_NOIO = 0x80000; // what PR_SET_IO_FLUSHER sets, with the next
  const PF_LOCAL_THROTTLE = 0x100000;

  // Without it not even root may; a lane that has it says so (.ci/run, guest).
  const mayProtect = process.env['EXTMEM_SYS_RESOURCE'] === '1' || hasSysResource();
  const protectedTest = mayProtect ? test : test.skip;

  protectedTest('is the last to be killed for memory, and its appliance with it', async () => {
    for (const name of ['m1', 'a1']) expect((await succeed('cat', [`/proc/${cluster.role(name).pid}/oom_score_adj`])).trim()).toBe('-900');
  });

  protectedTest('makes progress when memory is gone because of its own mount: PR_SET_IO_FLUSHER on the threads that serve', async () => {
    const { pid } = cluster.mount();
    const stats = (await succeed('sh', ['-c', `cat /proc/${pid}/task/*/stat`])).trim().split('\n');
    const flagged = stats.filter((line) => {
      const flags = Number(line.slice(line.lastIndexOf(')') + 2).split(' ')[6]);
      return (flags & PF_MEMALLOC_NOIO) !== 0 && (flags & PF_LOCAL_THROTTLE) !== 0;
    });
    const names = flagged.map((line) => line.slice(line.indexOf('(') + 1, line.lastIndexOf(')')));
    const { fuse } = await cluster.statistics();
    expect(names.filter((name) => name === 'extmem-fuse')).toHaveLength(fuse?.['threads'] ?? NaN);
    expect(flagged.map((line) => Number(line.split(' ')[0]))).toContain(pid); // the thread of the control path
  });

  test('has its cache locked, as far as it is in use', async () => {
    await succeed('dd', ['if=/dev/urandom', `of=${cluster.mount().path('file')}`, 'bs=64K', 'count=512']);
    await succeed('dd', [`if=${cluster.mount().path('file')}`, 'of=/dev/null', 'iflag=direct', 'bs=64K']);
    const status = await succeed('cat', [`/proc/${cluster.mount().pid}/status`]);
    const locked = Number(/^VmLck:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
    const { cache } = await cluster.statistics();
    expect(locked).toBeGreaterThanOrEqual(cache?.['limitBytes'] ?? NaN);
  });
});
