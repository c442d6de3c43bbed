/**
 * Every command of `extmem`: what it is called, which settings it takes, examples. What a command does is loaded only when it
 * runs, so that help and completion are quick and `doctor` runs where the addon cannot be loaded.
 */
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { exitCodeHelp } from './exit.js';
import { define, type CommandSpec, type Finish, type Invocation } from './invocation.js';
import type { ExitCode } from './exit.js';
import { servingSettings, type SettingName } from './settings.js';

const managerSettings = ['manager', 'token', 'tokenFile', 'tlsCa'] as const;
const storeSettings = [
  'store',
  'storeLimit',
  'storeCompression',
  'storeKeyFile',
  'storeKey',
  'restore',
  'persist',
  'persistInterval',
  'persistRate',
  'batterySeconds',
  'upsCommand',
] as const;
const askerSettings = ['name', 'keyFile', 'key'] as const;
const mountSettings = [...servingSettings, ...askerSettings] as const;
const detach = ['--detach', 'run in the background; prints the process id once it is ready'] as const;

type Act = (call: Invocation) => Promise<ExitCode>;

const roles: readonly [CommandSpec, () => Promise<Act>][] = [
  [
    {
      usage: 'up [mount-point]',
      summary: 'run a manager, appliances and a mount on this machine',
      details: 'Ctrl-C or SIGTERM (or `extmem umount`) unmounts and stops everything. The memory of the files goes with it.',
      settings: ['appliances', 'memory', 'dir', 'managerListen', ...servingSettings, 'mountPoint', 'logLevel'],
      flags: [detach],
      examples: [
        'extmem up',
        'extmem up /mnt/extmem --memory 8G --appliances 2',
        'extmem up --transport tcp --cache 256M --dir /tmp/extmem',
      ],
    },
    async () => (await import('./up.js')).runUp,
  ],
  [
    {
      usage: 'manager',
      summary: 'run the manager: names, placement, leases; never on the data path',
      details: 'Writes the join token that appliances and clients need to its state folder, and prints how to join.',
      settings: [
        'managerListen',
        'stateDir',
        'strategy',
        'rebuild',
        'rebuildRate',
        'checkDays',
        'tlsCert',
        'tlsKey',
        'token',
        'tokenFile',
        'logLevel',
      ],
      flags: [detach],
      examples: [
        'extmem manager',
        'extmem manager --listen 10.0.0.1',
        'extmem manager --listen 0.0.0.0:7070 --tls-cert cert.pem --tls-key key.pem',
      ],
    },
    async () => (await import('./roles.js')).runManager,
  ],
  [
    {
      usage: 'appliance',
      summary: "donate this machine's memory to a cluster",
      details:
        'With --store, what is in memory is persisted when the appliance ends in order (SIGTERM, SIGPWR, --ups-command), and comes back when it starts again.',
      settings: [
        ...managerSettings,
        'memory',
        'id',
        'rack',
        'applianceListen',
        'advertise',
        'serverThreads',
        ...storeSettings,
        'http',
        'logLevel',
      ],
      flags: [['--force', 'donate more than is available now'], detach],
      examples: [
        'extmem appliance --manager 10.0.0.1 --memory 8G --token-file token',
        'extmem appliance --manager 10.0.0.1 --token-file token --memory 8G --store /var/lib/extmem/store --store-limit 16G',
        'EXTMEM_TOKEN=... extmem appliance --manager 10.0.0.1 --memory 64G --detach',
      ],
    },
    async () => (await import('./roles.js')).runAppliance,
  ],
  [
    {
      usage: 'mount [mount-point]',
      summary: "mount a cluster's memory as a file system",
      details: 'The mount point must be an empty folder. SIGTERM, or `extmem umount`, writes back what is dirty and unmounts.',
      settings: [...managerSettings, 'mountPoint', ...mountSettings, 'http', 'logLevel'],
      flags: [['--mkdir', 'create the mount point'], detach],
      examples: [
        'extmem mount --manager 10.0.0.1 /mnt/extmem',
        'extmem mount --manager 10.0.0.1 --cache 4G --transport tcp --detach /mnt/extmem',
        'extmem mount --manager 10.0.0.1 --memory-limit 2G /mnt/extmem',
      ],
    },
    async () => (await import('./roles.js')).runMount,
  ],
  [
    {
      usage: 'umount <mount-point>',
      summary: 'unmount: write back what is dirty, then take the mount away',
      flags: [['--force', 'abort the connection: nothing is waited for, unwritten data is lost']],
      examples: ['extmem umount /mnt/extmem', 'extmem umount --force /mnt/extmem'],
    },
    async () => (await import('./umount.js')).runUmount,
  ],
];

const allocationSettings: readonly SettingName[] = [...managerSettings, ...askerSettings];

const allocations: readonly [CommandSpec, () => Promise<Act>][] = [
  [
    {
      usage: 'create <path>',
      summary: 'create an allocation (a file) of a given size',
      details: 'All of its memory is reserved, or none is. Paths are those below the mount, as in /data/table.',
      settings: [...allocationSettings, 'layout', 'across'],
      flags: [
        ['--size <size>', 'as in 8G'],
        ['--durability <level>', "what fsync promises: memory (default), or persisted, in the appliances' backing stores"],
        ['--label <text>', 'what people call it (later: the attribute user.extmem.label)'],
        ['--allow <rules>', 'who may do what with it (see extmem access --help)'],
        ['--access-key-file <path>', 'file with the key that rules with `key` ask for'],
      ],
      examples: [
        'extmem create /table --size 8G',
        'extmem create /ledger --size 1G --durability persisted',
        'extmem create /scratch --size 512MiB --layout concat',
        'extmem create /orders --size 4G --layout mirror --across host',
      ],
    },
    async () => (await import('./allocations.js')).runCreate,
  ],
  [
    {
      usage: 'access <path>',
      summary: 'show, or change, who may do what with an allocation',
      details: `Rules are parted by ';'. Each names rights joined by '+' (read, write, read-metadata, write-metadata, destroy; or all), then conditions that must all hold:
  clients=a,10.0.0.0/24   names that mounts give themselves (--name), addresses, networks
  via=shm,tcp,10.0.0.2    transports, and addresses of appliances, by which data may be reached
  key                     the key of --access-key-file was shown (--key-file)
  days=mon-fri hours=08:00-18:00 from=2026-01-31T08:00Z until=2026-12-31   when, in UTC
What no rule gives is not allowed. Only allocations made with --allow, empty ones, and those with regions of their own can have rules.`,
      settings: allocationSettings,
      flags: [
        ['--allow <rules>', 'from now on'],
        ['--access-key-file <path>', 'file with the key that rules with `key` ask for (default: the one in force)'],
        ['--open', 'no rules any more: whoever has the join token may do everything'],
      ],
      examples: [
        'extmem access /table',
        "extmem access /table --allow 'all clients=db1,db2; read+read-metadata clients=10.0.0.0/24 hours=08:00-18:00'",
        "extmem access /table --allow 'all key' --access-key-file table.key",
        'extmem access /table --open --key-file table.key',
      ],
    },
    async () => (await import('./access.js')).runAccess,
  ],
  [
    {
      usage: 'persist [paths...]',
      summary: "persist allocations in the appliances' backing stores",
      details:
        'As far as mounts have written them back: fsync, or close, comes first. Only what has changed since the last time is written.',
      settings: allocationSettings,
      flags: [
        ['--all', 'everything, on every appliance that has a backing store'],
        ['--free', 'and give the memory back, where clients go by tcp: it comes home when it is used'],
      ],
      examples: ['extmem persist /table', 'extmem persist --free /archive', 'extmem persist --all'],
    },
    async () => (await import('./allocations.js')).runPersist,
  ],
  [
    {
      usage: 'restore <paths...>',
      summary: 'accept allocations that came back from a backing store without what was last written to them',
      details:
        'After a crash an appliance has what was last persisted. Files that had newer contents in its memory say ESTALE until they are accepted as they are; close them everywhere first.',
      settings: allocationSettings,
      examples: ['extmem restore /table'],
    },
    async () => (await import('./allocations.js')).runRestore,
  ],
  [
    {
      usage: 'resize <path> [size]',
      summary: 'change the size of an allocation, at its end or within',
      details: 'Within, nothing is copied: what follows is only counted anew, in whole pages of 4 KiB.',
      settings: allocationSettings,
      flags: [
        ['--punch <offset,length>', 'make a hole: it reads as zeros, its memory is free, offsets stay'],
        ['--collapse <offset,length>', 'take a range out: what follows moves up'],
        ['--insert <offset,length>', 'put a hole in: what follows moves down'],
      ],
      examples: ['extmem resize /table 16G', 'extmem resize /log --collapse 0,1G', 'extmem resize /table --punch 4M,1M'],
    },
    async () => (await import('./allocations.js')).runResize,
  ],
  [
    {
      usage: 'rm <paths...>',
      summary: 'destroy allocations; their memory is free again',
      settings: allocationSettings,
      flags: [['--recursive', 'folders, with all that is in them']],
      examples: ['extmem rm /table', 'extmem rm --recursive /old'],
    },
    async () => (await import('./allocations.js')).runRemove,
  ],
  [
    {
      usage: 'ls [path]',
      summary: 'list allocations',
      settings: allocationSettings,
      examples: ['extmem ls', 'extmem ls /data --json'],
    },
    async () => (await import('./allocations.js')).runList,
  ],
  [
    {
      usage: 'info <path>',
      summary: 'tell all about one allocation: size, layout, regions, appliances, holders',
      settings: allocationSettings,
      examples: ['extmem info /table'],
    },
    async () => (await import('./allocations.js')).runInfo,
  ],
];

const jobFlags = [
  ['--rate <size>', 'no more bytes a second than this, as in 100M'],
  ['--background', 'do not wait; extmem jobs tells how far it is'],
] as const;

const moves: readonly [CommandSpec, () => Promise<Act>][] = [
  [
    {
      usage: 'migrate <paths...>',
      summary: 'move the memory of allocations to an appliance, while they are in use',
      details:
        'Of what has several copies, one moves. Whoever writes waits for a moment at a time; nobody sees another byte. Ctrl-C ends the waiting, not the job.',
      settings: allocationSettings,
      flags: [['--to <appliance>', 'where to'], ['--from <appliance>', 'only what is there'], ...jobFlags],
      examples: [
        'extmem migrate /table --to a3',
        'extmem migrate /a /b --from a1 --to a3 --rate 100M',
        'extmem migrate /t --to a2 --background',
      ],
    },
    async () => (await import('./jobs.js')).runMigrate,
  ],
  [
    {
      usage: 'rebuild [paths...]',
      summary: 'make missing and differing copies whole again, while the files are in use: of some, or of all',
      details:
        'This also happens by itself, at a modest rate (extmem manager --rebuild, --rebuild-rate). What cannot be made whole is listed, with the reason.',
      settings: allocationSettings,
      flags: jobFlags,
      examples: ['extmem rebuild', 'extmem rebuild /orders --rate 500M'],
    },
    async () => (await import('./jobs.js')).runRebuild,
  ],
  [
    {
      usage: 'check [paths...]',
      summary: 'compare the copies of allocations, while they are in use: of some, or of all',
      details:
        'A copy that is not as most of them are counts no more, and is made anew. Of two copies that differ nobody knows which is right: --trust says so. Ends with 1 if any differed. This also happens by itself, slowly (extmem manager --check-days).',
      settings: allocationSettings,
      flags: [['--trust <appliance>', 'whose copies are right, where others differ from them'], ...jobFlags],
      examples: ['extmem check', 'extmem check /orders --json', 'extmem check /orders --trust a2'],
    },
    async () => (await import('./jobs.js')).runCheck,
  ],
  [
    {
      usage: 'drain <appliance>',
      summary: 'empty an appliance while what is on it is in use, so that it can be stopped',
      details:
        'Nothing new is placed there from now on, until --undo. What cannot move (no room elsewhere, too few hosts or racks) is listed, and stays.',
      settings: managerSettings,
      flags: [['--undo', 'place things there again; what has moved away stays where it is'], ...jobFlags],
      examples: ['extmem drain a1', 'extmem drain a1 --rate 200M --background', 'extmem drain a1 --undo'],
    },
    async () => (await import('./jobs.js')).runDrain,
  ],
  [
    {
      usage: 'jobs [cancel] [job]',
      summary: 'what is being moved, and what was; or cancel one, after what is being moved right now',
      settings: managerSettings,
      examples: ['extmem jobs', 'extmem jobs --json', 'extmem jobs cancel 7'],
    },
    async () => (await import('./jobs.js')).runJobs,
  ],
];

const operations: readonly [CommandSpec, () => Promise<Act>][] = [
  [
    {
      usage: 'status',
      summary: 'the cluster (appliances, memory, clients) and the mounts of this machine',
      settings: managerSettings,
      examples: ['extmem status', 'extmem status --json --manager 10.0.0.1'],
    },
    async () => (await import('./status.js')).runStatus,
  ],
  [
    {
      usage: 'regions [region]',
      summary: 'the regions of the pool: where they are, what of them is in memory, whose they are; of one, which files lie in it',
      settings: allocationSettings,
      flags: [
        ['--appliance <id>', 'of this appliance'],
        ['--stats', 'what is done with them instead: operations, bytes, the last access, the hottest 2 MiB'],
      ],
      examples: ['extmem regions', 'extmem regions --appliance a1 --json', 'extmem regions --stats', 'extmem regions 7'],
    },
    async () => (await import('./regions.js')).runRegions,
  ],
  [
    {
      usage: 'health',
      summary: 'what the machines of the appliances say of themselves: sensors, memory errors, power, disks, pressure',
      details: 'What a machine has no sensor for is shown as absent. Exits with 1 when there is something to look at.',
      settings: managerSettings,
      examples: ['extmem health', 'extmem health --json --manager 10.0.0.1'],
    },
    async () => (await import('./health.js')).runHealth,
  ],
  [
    {
      usage: 'evict [paths...]',
      summary: "drop what is clean, from a mount's cache and the kernel's: of files, or of whole mounts",
      details:
        'A path is a file on a mount, or a mount point; without one: all mounts of this user on this machine. Nothing is lost: what is dirty stays. What is pinned stays too.',
      examples: ['extmem evict /mnt/extmem/table', 'extmem evict /mnt/extmem/logs/*', 'extmem evict /mnt/extmem', 'extmem evict'],
    },
    async () => (await import('./file_cache.js')).runEvict,
  ],
  [
    {
      usage: 'watch [path]',
      summary: 'tell what is read and written on a mount, interval by interval',
      details:
        'The path is a mount point, or a file on a mount. Told are the requests that come to the mount: what the kernel answers from its own cache is none. With --json, a line per interval. Files are named by their inode (find MOUNT -inum N).',
      flags: [
        ['--interval <ms>', 'default 1000'],
        ['--count <n>', 'so many intervals; default: until it is interrupted'],
      ],
      examples: ['extmem watch /mnt/extmem', 'extmem watch /mnt/extmem/table --interval 200 --json'],
    },
    async () => (await import('./watch.js')).runWatch,
  ],
  [
    {
      usage: 'warm <files...>',
      summary: 'read files on a mount into its cache before they are needed',
      details: 'The mount reads, in the background; this waits and tells how far it is. What the cache has no room for is left out.',
      flags: [
        ['--offset <size>', 'from here on'],
        ['--length <size>', 'so much (default: to the end)'],
        ['--background', 'do not wait; extmem status tells when it is done'],
      ],
      examples: [
        'extmem warm /mnt/extmem/table',
        'extmem warm --offset 1G --length 256M /mnt/extmem/table',
        'extmem warm --background /mnt/extmem/db/*',
      ],
    },
    async () => (await import('./file_cache.js')).runWarm,
  ],
  [
    {
      usage: 'pin <files...>',
      summary: 'keep files on a mount in its cache: they are read into it, and never evicted',
      details:
        'Refused when there is no room: half of the cache can be pinned (what may be dirty, twice, cannot). A pin ends with extmem unpin, when the file is removed, and with the mount.',
      examples: ['extmem pin /mnt/extmem/index', 'extmem pin /mnt/extmem/db/*.idx --json'],
    },
    async () => (await import('./file_cache.js')).runPin,
  ],
  [
    {
      usage: 'unpin <files...>',
      summary: 'let pinned files be evicted again',
      examples: ['extmem unpin /mnt/extmem/index'],
    },
    async () => (await import('./file_cache.js')).runUnpin,
  ],
  [
    {
      usage: 'doctor',
      summary: 'what this machine can do, what is missing and how to get it',
      settings: ['transport', 'ioUring', 'mountPoint', 'cache'],
      examples: ['extmem doctor', 'extmem doctor --json'],
    },
    async () => (await import('./doctor.js')).runDoctor,
  ],
  [
    {
      usage: 'config',
      summary: 'every setting: what holds, and where it comes from',
      examples: ['extmem config', 'EXTMEM_CACHE=4G extmem config --json'],
    },
    async () => (await import('./config.js')).runConfig,
  ],
  [
    {
      usage: 'completion [shell]',
      summary: 'print the completion script for a shell (bash)',
      examples: ['extmem completion bash > /etc/bash_completion.d/extmem', 'source <(extmem completion)'],
    },
    async () => (await import('./completion.js')).runCompletion,
  ],
  [
    {
      usage: 'tour',
      summary: 'start everything on this machine and show what it does, with a real file of 100 MB and more',
      settings: ['appliances', 'memory', 'cache', 'threads', 'ioUring', 'transport', 'mountPoint', 'logLevel'],
      flags: [['--exit', 'end after the tour; non-zero when a step failed']],
      examples: ['extmem tour', 'extmem tour --exit --transport tcp'],
    },
    async () => (await import('./tour.js')).runTour,
  ],
];

export function buildProgram(finish: Finish): Command {
  const program = new Command('extmem');
  program
    .description('RAM of other machines, as files. `ls` lists it, `cp` saves it, `mmap` makes it primary memory.')
    .version(version(), '-V, --version')
    .exitOverride()
    .showSuggestionAfterError()
    .addHelpText(
      'after',
      `
Start here:
  extmem up                      everything on this machine, mounted
  extmem tour                    the same, and a guided tour
  extmem doctor                  what this machine can do
Several machines:
  extmem manager --listen 10.0.0.1
  extmem appliance --manager 10.0.0.1 --memory 8G
  extmem mount --manager 10.0.0.1 /mnt/extmem
${exitCodeHelp}`,
    );
  for (const [spec, load] of [...roles, ...allocations, ...moves, ...operations]) {
    define(program, finish, spec, async (call) => (await load())(call));
  }
  for (const command of program.commands) command.exitOverride();
  return program;
}

function version(): string {
  const manifest = new URL('../../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(manifest, 'utf8')) as { version: string }).version;
}
