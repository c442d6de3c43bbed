/** The appliance that these tests are about. */
import { until } from '../until.js';
import { clusterStatus } from '../mount/bad_days.js';
import type { Role, TestCluster } from '../mount/cluster.js';

/** `a1`, alone in its cluster, with that store; resolves when the manager counts it. */
export async function startWithStore(cluster: TestCluster, store: string, ...flags: string[]): Promise<Role> {
  const role = await cluster.startAppliance('a1', '--store', store, ...flags);
  await until('the manager counts it', async () => (await clusterStatus(cluster)).appliances[0]?.state === 'up');
  return role;
}
