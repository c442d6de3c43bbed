/**
 * `extmem doctor`: what this machine can do, what is missing and how to get it, and which session and transport would be used.
 * Reads only; fails (exit 1) only when the main job, mounting and serving memory, cannot work here.
 */
import { constants, readFileSync } from 'node:fs';
import { access, readdir, readFile } from 'node:fs/promises';
import { availableParallelism, release } from 'node:os';
import { delimiter, join } from 'node:path';
import { messageOf } from '../base/errors.js';
import { formatSize } from '../base/size.js';
import type { IoUring, RdmaPort, Transport } from '../binding/index.js';
import { ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { printJson, printLine } from './output.js';

export type Verdict = 'ok' | 'advice' | 'missing';

export interface Finding {
  name: string;
  verdict: Verdict;
  value: string;
  /** What to do about it. */
  advice?: string;
}

/** What the findings are drawn from; tests give their own. */
export interface Machine {
  root: boolean;
  /** CAP_SYS_RESOURCE: for oom_score_adj below 0 and PR_SET_IO_FLUSHER. */
  sysResource: boolean;
  kernel: string;
  cpus: number;
  fuseDevice: boolean;
  fusermount: boolean;
  fuseConf: string;
  uringParameter: string | undefined; // of the fuse module: 'Y', 'N'
  /** Devices that the kernel has, whether or not the libraries to use them are installed. */
  infiniband: string[];
  meminfo: string;
  limits: string;
  maxMapCount: number;
  shmemHuge: string;
  /** The addon's own probe, or why it cannot be loaded. */
  probe: { fuseMinor: number; ioUring: boolean; memfdSeals: boolean; rdmaLibraries: boolean; rdma: RdmaPort[] } | string;
}

async function text(path: string): Promise<string> {
  return (await readFile(path, 'utf8').catch(() => '')).trim();
}

async function isOnPath(command: string): Promise<boolean> {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/bin', '/bin', '/usr/local/bin'];
  const found = await Promise.all(
    folders.map((folder) =>
      access(join(folder, command), constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  return found.includes(true);
}

async function probeAddon(): Promise<Machine['probe']> {
  try {
    const { native } = await import('../binding/index.js');
    return native.probe();
  } catch (error) {
    return messageOf(error);
  }
}

const CAP_SYS_RESOURCE = 24n;

export function hasSysResource(status = readFileSync('/proc/self/status', 'utf8')): boolean {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  return ((effective >> CAP_SYS_RESOURCE) & 1n) === 1n;
}

export async function inspectMachine(): Promise<Machine> {
  return {
    root: process.getuid?.() === 0,
    sysResource: hasSysResource(),
    kernel: release(),
    cpus: availableParallelism(),
    fuseDevice: await access('/dev/fuse', constants.R_OK | constants.W_OK).then(
      () => true,
      () => false,
    ),
    fusermount: await isOnPath('fusermount3'),
    fuseConf: await text('/etc/fuse.conf'),
    uringParameter: (await text('/sys/module/fuse/parameters/enable_uring')) || undefined,
    infiniband: await readdir('/sys/class/infiniband').catch(() => []),
    meminfo: await text('/proc/meminfo'),
    limits: await text('/proc/self/limits'),
    maxMapCount: Number(await text('/proc/sys/vm/max_map_count')),
    shmemHuge: await text('/sys/kernel/mm/transparent_hugepage/shmem_enabled'),
    probe: await probeAddon(),
  };
}

function limitOf(limits: string, name: string): number {
  const match = new RegExp(`^${name}\\s+(\\S+)`, 'm').exec(limits);
  return match?.[1] === 'unlimited' ? Infinity : Number(match?.[1] ?? 0);
}

function meminfoOf(meminfo: string, name: string): number {
  return Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(meminfo)?.[1] ?? 0);
}

const showLimit = (bytes: number): string => (bytes === Infinity ? 'unlimited' : formatSize(bytes));

function examineFuse(machine: Machine): Finding[] {
  const { probe } = machine;
  const findings: Finding[] = [
    { name: 'kernel', verdict: 'ok', value: `${machine.kernel}, ${machine.cpus} CPUs` },
    typeof probe === 'string'
      ? { name: 'native addon', verdict: 'missing', value: probe, advice: 'scripts/setup' }
      : { name: 'native addon', verdict: 'ok', value: 'loads' },
    machine.fuseDevice
      ? { name: 'FUSE device', verdict: 'ok', value: '/dev/fuse' }
      : {
          name: 'FUSE device',
          verdict: 'missing',
          value: '/dev/fuse is absent or not accessible',
          advice: 'modprobe fuse   (in a container: run it with --device /dev/fuse --cap-add SYS_ADMIN)',
        },
  ];
  if (typeof probe !== 'string' && machine.fuseDevice)
    findings.push({ name: 'FUSE protocol', verdict: 'ok', value: probe.fuseMinor > 0 ? `7.${probe.fuseMinor}` : 'told at mount time' });
  const fusermount: Finding = {
    name: 'fusermount3',
    verdict: 'ok',
    value: machine.fusermount ? 'found' : 'not found, and not needed by root',
  };
  if (!machine.fusermount && !machine.root)
    findings.push({
      ...fusermount,
      verdict: 'missing',
      value: 'not found; needed to mount without root',
      advice: 'sudo apt-get install fuse3',
    });
  else findings.push(fusermount);
  if (!machine.root && !/^\s*user_allow_other\s*$/m.test(machine.fuseConf)) {
    findings.push({
      name: 'other users',
      verdict: 'advice',
      value: 'a mount made without root is seen by its user only',
      advice: 'echo user_allow_other | sudo tee -a /etc/fuse.conf',
    });
  }
  findings.push(examineUring(machine));
  if (typeof probe !== 'string' && !probe.memfdSeals)
    findings.push({ name: 'memfd seals', verdict: 'missing', value: 'not supported by this kernel', advice: 'Linux 3.17 or newer' });
  return findings;
}

const whereUring = '6.14 and newer have it, built with CONFIG_FUSE_IO_URING';

function examineUring({ uringParameter, probe }: Machine): Finding {
  const name = 'FUSE over io_uring';
  if (uringParameter === undefined) return { name, verdict: 'ok', value: `not in this kernel (${whereUring})` };
  if (uringParameter !== 'Y') {
    return {
      name,
      verdict: 'ok',
      value: 'the kernel has it, and it is switched off',
      advice:
        'echo Y | sudo tee /sys/module/fuse/parameters/enable_uring   (until the next boot; for good: the kernel parameter fuse.enable_uring=Y)',
    };
  }
  if (typeof probe !== 'string' && !probe.ioUring) {
    return {
      name,
      verdict: 'advice',
      value: 'switched on, but io_uring itself is forbidden here',
      advice: 'sysctl kernel.io_uring_disabled=0   (in a container: a seccomp profile that allows io_uring)',
    };
  }
  return { name, verdict: 'ok', value: 'switched on' };
}

/** What a mount on this machine would be served over, or why it could not be mounted. */
export function sessionOf(machine: Machine, ioUring: IoUring): { session: string; complaint?: string } {
  const able = machine.uringParameter === 'Y' && typeof machine.probe !== 'string' && machine.probe.ioUring;
  if (ioUring === 'off' || (ioUring === 'auto' && !able)) return { session: '/dev/fuse' };
  return able ? { session: 'io_uring' } : { session: 'none', complaint: 'with --io-uring=on nothing can be mounted here' };
}

function examineMemory(machine: Machine, cacheBytes: number): Finding[] {
  const kilobytes = (name: string): number => meminfoOf(machine.meminfo, name) * 1024;
  const available = kilobytes('MemAvailable');
  const hugeTotal = meminfoOf(machine.meminfo, 'HugePages_Total');
  const memlock = limitOf(machine.limits, 'Max locked memory');
  const findings: Finding[] = [
    available >= 512 * 1024 ** 2
      ? { name: 'memory', verdict: 'ok', value: `${formatSize(available)} available of ${formatSize(kilobytes('MemTotal'))}` }
      : {
          name: 'memory',
          verdict: 'advice',
          value: `only ${formatSize(available)} available`,
          advice: 'donate and cache less: --memory 128M --cache 64M',
        },
    {
      name: 'huge pages',
      verdict: 'ok',
      value:
        hugeTotal > 0
          ? `${meminfoOf(machine.meminfo, 'HugePages_Free')} of ${hugeTotal} free`
          : `none reserved; transparent ones for shared memory: ${/\[(\w+)\]/.exec(machine.shmemHuge)?.[1] ?? 'unknown'}`,
    },
    memlock >= cacheBytes || machine.root
      ? { name: 'locked memory', verdict: 'ok', value: `limit ${showLimit(memlock)}${machine.root ? ', which does not bind root' : ''}` }
      : {
          name: 'locked memory',
          verdict: 'advice',
          value: `limit ${showLimit(memlock)} is below the cache of ${formatSize(cacheBytes)}: it may be swapped out`,
          advice: `add to /etc/security/limits.conf: ${process.env['USER'] ?? '*'} - memlock unlimited`,
        },
  ];
  return findings;
}

/** What a mount's process can do for itself when memory is short. */
function examinePressure({ root, sysResource }: Machine): Finding {
  const name = 'memory pressure';
  if (!root)
    return {
      name,
      verdict: 'advice',
      value:
        "without root a mount's process can be killed for memory like any other, and the kernel lets 1 % of memory be dirty of its files (their writers wait)",
      advice: 'mount as root; docs/operations.md, "When memory is short"',
    };
  if (!sysResource)
    return {
      name,
      verdict: 'advice',
      value: "without CAP_SYS_RESOURCE a mount's process can be killed for memory like any other, and may wait for its own write-back",
      advice: 'in a container: --cap-add SYS_RESOURCE',
    };
  return { name, verdict: 'ok', value: 'who serves a mount is protected from the OOM killer, and does not wait for itself' };
}

function examineLimits(machine: Machine): Finding[] {
  // Node raises the soft limit to the hard one at its start, so the soft one read here is what a role gets.
  const files = limitOf(machine.limits, 'Max open files');
  return [
    files >= 8192
      ? { name: 'open files', verdict: 'ok', value: `limit ${files}` }
      : {
          name: 'open files',
          verdict: 'advice',
          value: `limit ${files}: an appliance needs one per region`,
          advice: 'ulimit -Hn 65536   (or LimitNOFILE=65536 in its systemd unit)',
        },
    machine.maxMapCount >= 65530
      ? { name: 'memory maps', verdict: 'ok', value: `limit ${machine.maxMapCount}` }
      : { name: 'memory maps', verdict: 'advice', value: `limit ${machine.maxMapCount}`, advice: 'sysctl vm.max_map_count=65530' },
  ];
}

/** Locked memory that a mount over verbs needs at least, beside its frames: each connection's buffers, and a chunk or two. */
const VERBS_LOCKED_BYTES = 64 * 1024 ** 2;

function examineRdma({ infiniband, probe, limits, root }: Machine): Finding {
  const name = 'RDMA devices';
  if (infiniband.length === 0) return { name, verdict: 'ok', value: 'none; tcp carries the same operations' };
  if (typeof probe === 'string' || !probe.rdmaLibraries)
    return {
      name,
      verdict: 'advice',
      value: `${infiniband.join(', ')}, and libibverbs or librdmacm is missing: verbs would not be used`,
      advice: 'sudo apt-get install rdma-core ibverbs-providers librdmacm1',
    };
  const ports = probe.rdma.map(
    ({ device, port, state, mtu, onDemandPaging }) =>
      `${device} port ${port} (${state}, MTU ${mtu}, ${onDemandPaging ? 'with' : 'no'} on-demand paging)`,
  );
  const value = ports.join(', ') || `${infiniband.join(', ')}, which cannot be opened`;
  if (!canUseVerbs(probe))
    return { name, verdict: 'advice', value: `${value}; none is active: verbs would not be used`, advice: 'rdma link show' };
  const memlock = limitOf(limits, 'Max locked memory');
  if (!root && memlock < VERBS_LOCKED_BYTES)
    return {
      name,
      verdict: 'advice',
      value: `${value}; locked memory is limited to ${showLimit(memlock)}: memory beyond it goes in messages, not one-sided`,
      advice: `add to /etc/security/limits.conf: ${process.env['USER'] ?? '*'} - memlock unlimited`,
    };
  const small = probe.rdma.some(({ state, mtu }) => state === 'active' && mtu < 4096);
  if (small)
    return {
      name,
      verdict: 'advice',
      value: `${value}; verbs would be used, with writes of whole pages in messages: a packet does not hold a page`,
      advice: 'ip link set DEVICE mtu 4200 (or more) on all hosts and switches of that network',
    };
  return { name, verdict: 'ok', value: `${value}; verbs would be used` };
}

function canUseVerbs(probe: Machine['probe']): boolean {
  return typeof probe !== 'string' && probe.rdmaLibraries && probe.rdma.some(({ state }) => state === 'active');
}

/** What would be tried first to reach an appliance. */
export function transportsOf(machine: Machine, transport: Transport): Record<string, string> {
  if (transport !== 'auto') return { 'every host': transport };
  return { 'same host': 'shm', 'other hosts': canUseVerbs(machine.probe) ? 'verbs where the appliance serves it, else tcp' : 'tcp' };
}

export function examine(machine: Machine, options: { cacheBytes: number }): Finding[] {
  return [
    ...examineFuse(machine),
    ...examineMemory(machine, options.cacheBytes),
    examinePressure(machine),
    ...examineLimits(machine),
    examineRdma(machine),
  ];
}

export async function runDoctor(call: Invocation): Promise<ExitCode> {
  const machine = await inspectMachine();
  const findings = examine(machine, { cacheBytes: call.settings.required('cache') });
  const { session, complaint } = sessionOf(machine, call.settings.required('ioUring'));
  if (complaint !== undefined) findings.push({ name: 'session', verdict: 'missing', value: complaint, advice: '--io-uring=auto' });
  const able = findings.every(({ verdict }) => verdict !== 'missing');
  const transport = call.settings.required('transport');
  const would = {
    session: able ? session : 'none',
    transport: transportsOf(machine, transport),
  };
  if (call.json) {
    printJson({ able, findings, ...would });
  } else {
    for (const { name, verdict, value, advice } of findings) {
      printLine(`${{ ok: '  ok     ', advice: '  advice ', missing: '  MISSING' }[verdict]}  ${name}: ${value}`);
      if (advice !== undefined) printLine(`             ${advice}`);
    }
    printLine('');
    const used = Object.entries(would.transport).map(([where, name]) => `${name} (${where})`);
    printLine(
      able
        ? `This machine can serve and mount. Session: ${would.session}; transport: ${used.join(', ')}.`
        : 'This machine cannot mount yet: see what is MISSING above.',
    );
  }
  return able ? ExitCode.ok : ExitCode.failed;
}
