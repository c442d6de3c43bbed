/** What goes wrong, one thing at a time, on hosts of a real cluster; and what mends it. */
import type { Random } from '../model/model_file.js';
import type { ChaosCluster } from './cluster.js';

export interface Fault {
  readonly what: string;
  /** Names may be refused while it lasts. */
  readonly ofManager: boolean;
  strike(): Promise<void> | void;
  mend(): Promise<void> | void;
}

type Maker = (cluster: ChaosCluster, random: Random) => Fault;

const killAppliance: Maker = (cluster, random) => {
  const name = random.pick(cluster.appliances);
  return {
    what: `kill -9 of ${name}, which comes back with nothing`,
    ofManager: false,
    strike: () => cluster.kill(name),
    mend: () => cluster.startAppliance(name),
  };
};

const stopAppliance: Maker = (cluster, random) => {
  const name = random.pick(cluster.appliances);
  return {
    what: `SIGSTOP of ${name}`,
    ofManager: false,
    strike: () => cluster.signal(name, 'SIGSTOP'),
    mend: () => cluster.signal(name, 'SIGCONT'),
  };
};

const cutLink: Maker = ({ hosts, appliances }, random) => {
  const name = random.pick(appliances);
  return {
    what: `the cable of ${name}`,
    ofManager: false,
    strike: () => hosts.setLink(name, 0, 'down'),
    mend: () => hosts.setLink(name, 0, 'up'),
  };
};

/** Between the client and an appliance only: the manager sees both. */
const cutOneWay: Maker = ({ hosts, appliances, client }, random) => {
  const name = random.pick(appliances);
  const [from, to] = random.chance(50) ? [client, name] : [name, client];
  return {
    what: `all that ${from} sends to ${to} is lost`,
    ofManager: false,
    strike: () => hosts.drop(from, hosts.address(to)),
    mend: () => hosts.admit(from),
  };
};

const killManager: Maker = (cluster) => ({
  what: 'kill -9 of the manager',
  ofManager: true,
  strike: () => cluster.kill('manager'),
  mend: () => cluster.startManager(),
});

const stopManager: Maker = (cluster) => ({
  what: 'SIGSTOP of the manager',
  ofManager: true,
  strike: () => cluster.signal('manager', 'SIGSTOP'),
  mend: () => cluster.signal('manager', 'SIGCONT'),
});

/** All copies live through these. */
const harmless = [killManager, stopManager];
/** After one of these some copies are missing what was written meanwhile, or all they had. */
const costly = [killAppliance, killAppliance, stopAppliance, cutLink, cutOneWay, cutOneWay];

export function chooseFault(cluster: ChaosCluster, random: Random, may: 'cost copies' | 'cost nothing'): Fault {
  return random.pick(may === 'cost copies' ? costly : harmless)(cluster, random);
}
