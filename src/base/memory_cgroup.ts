/** Where memory cgroups are, of either version, as /proc tells. Parameters are the texts of its files. */

/** Above this a limit of version 1 is none (PAGE_COUNTER_MAX, rounded by the kernel). */
export const UNLIMITED_BYTES = 2 ** 62;

/** Our memory cgroup of version 1 below its hierarchy, by /proc/self/cgroup. */
export function legacyMemoryCgroup(membership: string): string | undefined {
  return /^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:(.*)$/m.exec(membership)?.[1];
}

/** Where a hierarchy is mounted, by /proc/self/mountinfo; of version 1 the one with this controller. */
export function cgroupMount(mountInfo: string, type: 'cgroup' | 'cgroup2', controller?: string): string | undefined {
  for (const line of mountInfo.split('\n')) {
    const [place, source] = line.split(' - ');
    const [found, , options] = source?.split(' ') ?? [];
    if (found === type && (controller === undefined || options?.split(',').includes(controller) === true)) return place?.split(' ')[4];
  }
  return undefined;
}
