/** `extmem up`: a whole cluster on this machine, until a signal. */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { formatSize } from '../base/size.js';
import { runRole, type Running } from './daemon.js';
import type { ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { LocalCluster } from './local_cluster.js';
import { printWarning, Progress } from './output.js';

export function runUp(call: Invocation): Promise<ExitCode> {
  const dir = call.settings.required('dir');
  return runRole({ json: call.json, detach: call.has('detach'), logFile: join(dir, 'up.log') }, (stopping) => startUp(call, dir, stopping));
}

export const defaultMountPoint = (): string => (process.getuid?.() === 0 ? '/mnt/extmem' : join(homedir(), 'extmem'));

async function startUp(call: Invocation, dir: string, stopping: AbortSignal): Promise<Running> {
  const progress = new Progress();
  const cluster = new LocalCluster({
    settings: call.settings,
    dir,
    stopping,
    mountPoint: call.args[0] ?? call.settings.optional('mountPoint') ?? defaultMountPoint(),
    warn: (message) => {
      progress.clear();
      printWarning(message);
    },
    step: (message) => progress.show(`${message} ...`),
  });
  try {
    await cluster.start();
  } catch (error) {
    progress.clear();
    await cluster.stop();
    throw error;
  }
  progress.clear();
  return {
    facts: {
      mountPoint: cluster.mountPoint,
      manager: cluster.managerUrl,
      tokenFile: cluster.tokenFile,
      memoryBytes: cluster.memoryBytes,
      processes: cluster.processes(),
    },
    banner: `${formatSize(cluster.memoryBytes)} of memory as files on ${cluster.mountPoint} (manager ${cluster.managerUrl}). Ctrl-C unmounts and stops everything.`,
    ended: cluster.ended,
    close: async () => {
      await cluster.stop();
    },
  };
}
