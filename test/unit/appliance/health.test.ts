/** What an appliance reads of a machine, and how much it then offers. The machines are folders. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { readHealth, worries } from '../../../src/appliance/health.js';
import { spareMemory } from '../../../src/appliance/memory.js';
import { keptBytes, offerOf, type Offer } from '../../../src/appliance/offer.js';
import { storeDevice } from '../../../src/appliance/store_device.js';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'extmem-health-'));
});
afterEach(() => {
  rmSync(root, { recursive: true });
});

function put(files: Record<string, string>): void {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), `${text}\n`);
  }
}

const meminfo = { 'proc/meminfo': `MemTotal:       ${32 * 1024 * 1024} kB\nMemFree: 5 kB\nMemAvailable:   ${8 * 1024 * 1024} kB` };

describe('health', () => {
  test('what a machine has no sensor for is absent, and nothing to worry about', () => {
    expect(readHealth(root)).toEqual({});
    expect(worries(readHealth(root))).toEqual([]);
  });

  test('sensors are told in the units of a person, by chip and label; one that is not connected is not told', () => {
    put({
      'sys/class/hwmon/hwmon0/name': 'coretemp',
      'sys/class/hwmon/hwmon0/temp1_input': '41500',
      'sys/class/hwmon/hwmon0/temp1_label': 'Package id 0',
      'sys/class/hwmon/hwmon0/temp1_crit': '100000',
      'sys/class/hwmon/hwmon0/temp2_input': '',
      'sys/class/hwmon/hwmon1/name': 'nct6775',
      'sys/class/hwmon/hwmon1/in0_input': '1216',
      'sys/class/hwmon/hwmon1/fan2_input': '903',
    });
    expect(readHealth(root)).toEqual({
      temperatures: [{ chip: 'coretemp', label: 'Package id 0', value: 41.5, critical: 100 }],
      voltages: [{ chip: 'nct6775', label: 'in0', value: 1.216 }],
      fans: [{ chip: 'nct6775', label: 'fan2', value: 903 }],
    });
  });

  test('memory errors, power sources, disks and pressure are read where the kernel has them', () => {
    put({
      'sys/devices/system/edac/mc/mc0/ce_count': '3',
      'sys/devices/system/edac/mc/mc0/ue_count': '0',
      'sys/devices/system/edac/mc/power/control': 'auto',
      'sys/class/power_supply/AC/type': 'Mains',
      'sys/class/power_supply/AC/online': '1',
      'sys/class/power_supply/BAT0/type': 'Battery',
      'sys/class/power_supply/BAT0/capacity': '87',
      'sys/class/power_supply/BAT0/status': 'Full',
      'sys/block/sda/device/state': 'running',
      'sys/block/sda/device/ioerr_cnt': '0x1f',
      'sys/block/sda/ro': '0',
      'sys/block/loop0/ro': '0',
      ...Object.fromEntries(
        ['memory', 'cpu', 'io'].map((what) => [
          `proc/pressure/${what}`,
          'some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=9',
        ]),
      ),
    });
    const wait = { someOf10s: 1.5, allOf10s: 0.25 };
    expect(readHealth(root)).toEqual({
      memoryErrors: [{ controller: 'mc0', corrected: 3, uncorrected: 0 }],
      power: [
        { source: 'AC', kind: 'Mains', online: true },
        { source: 'BAT0', kind: 'Battery', percent: 87, status: 'Full' },
      ],
      blockDevices: [{ device: 'sda', readOnly: false, state: 'running', errors: 31 }],
      pressure: { memory: wait, cpu: wait, io: wait },
    });
    expect(worries(readHealth(root))).toEqual([]);
  });

  test('what somebody should look at is told', () => {
    put({
      'sys/class/hwmon/hwmon0/name': 'k10temp',
      'sys/class/hwmon/hwmon0/temp1_input': '99000',
      'sys/class/hwmon/hwmon0/temp1_crit': '95000',
      'sys/devices/system/edac/mc/mc0/ce_count': '0',
      'sys/devices/system/edac/mc/mc0/ue_count': '2',
      'sys/class/power_supply/AC/type': 'Mains',
      'sys/class/power_supply/AC/online': '0',
      'sys/block/sdb/device/state': 'offline',
      'sys/block/sdb/ro': '0',
    });
    expect(worries(readHealth(root))).toEqual([
      'k10temp temp1 has 99 °C, critical from 95 °C on',
      'memory controller mc0: 2 errors could not be corrected',
      'no power source is online: the machine runs on battery',
      'disk sdb is offline',
    ]);
  });

  test('of a backing store: what fails, a device that is read-only, a battery that does not last', () => {
    const store = { path: '/s', usedBytes: 0, persistSeconds: 3, failure: '', broken: '' };
    expect(worries({ store: { ...store, readOnly: false, batterySeconds: 3 } })).toEqual([]);
    expect(worries({ store: { ...store, failure: 'the store is full' } })).toEqual([
      'persisting in /s failed (the store is full); what is in memory is served all the same',
    ]);
    expect(worries({ store: { ...store, failure: 'EIO', broken: 'EIO', readOnly: true, batterySeconds: 2 } })).toEqual([
      'nothing is persisted in /s any more (EIO); what is in memory is served all the same: start this appliance again when it is mended',
      'the device of /s is read-only',
      'persisting everything takes 3 s, the battery lasts 2 s: at a power failure part of it would be lost',
    ]);
  });

  test('a store is found on the device of its file system, also before it is made', () => {
    const found = storeDevice(join(root, 'not-there-yet'));
    expect(found.freeBytes).toBeGreaterThan(0);
    expect(storeDevice(root).device).toBe(found.device);
  });

  test('this machine is read without an error', () => {
    expect(worries(readHealth())).toBeInstanceOf(Array);
  });
});

describe('spare memory', () => {
  const unified = { ...meminfo, 'proc/self/cgroup': '0::/apps/extmem', 'proc/self/mountinfo': '30 2 0:1 / /cg rw - cgroup2 none rw' };

  test('is what the machine has available, where no cgroup bounds us', () => {
    put(meminfo);
    expect(spareMemory(root)).toEqual({ bytes: 8 * GIB, totalBytes: 32 * GIB, boundBy: 'machine' });
  });

  test('is what the tightest cgroup above us allows (version 2)', () => {
    put({
      ...unified,
      'cg/apps/memory.max': `${4 * GIB}`,
      'cg/apps/memory.current': `${3 * GIB}`,
      'cg/apps/memory.stat': `anon 5\ninactive_file ${GIB}`,
      'cg/apps/extmem/memory.max': 'max',
      'cg/apps/extmem/memory.current': `${GIB}`,
    });
    expect(spareMemory(root)).toEqual({ bytes: 2 * GIB, totalBytes: 4 * GIB, boundBy: 'cgroup' });
  });

  test('is what the cgroup allows (version 1)', () => {
    put({
      ...meminfo,
      'proc/self/cgroup': '4:memory:/jobs/7\n0::/',
      'proc/self/mountinfo': '31 2 0:1 / /cg/memory rw - cgroup cgroup rw,memory',
      'cg/memory/jobs/7/memory.stat': `cache 1\nhierarchical_memory_limit ${2 * GIB}\ntotal_inactive_file 0`,
      'cg/memory/jobs/7/memory.usage_in_bytes': `${GIB}`,
    });
    expect(spareMemory(root)).toEqual({ bytes: GIB, totalBytes: 2 * GIB, boundBy: 'cgroup' });
  });

  test('a cgroup without a limit bounds nobody', () => {
    put({
      ...meminfo,
      'proc/self/cgroup': '4:memory:/jobs/7',
      'proc/self/mountinfo': '31 2 0:1 / /cg/memory rw - cgroup cgroup rw,memory',
      'cg/memory/jobs/7/memory.stat': 'hierarchical_memory_limit 9223372036854771712',
      'cg/memory/jobs/7/memory.usage_in_bytes': `${GIB}`,
    });
    expect(spareMemory(root).boundBy).toBe('machine');
  });
});

describe('what is offered', () => {
  const host = (bytes: number): Parameters<typeof offerOf>[1] => ({ bytes, totalBytes: 16 * GIB, boundBy: 'machine' });
  const kept = keptBytes(16 * GIB);
  const whole: Offer = { bytes: 8 * GIB, state: 'whole' };
  const lowered = (bytes: number): Offer => ({ bytes, state: 'lowered' });

  test('is all that was donated while the host has it to spare, what is resident included', () => {
    const memory = { reservedBytes: 6 * GIB, residentBytes: 5 * GIB };
    expect(offerOf(8 * GIB, host(3 * GIB + kept), memory, whole)).toEqual(whole);
  });

  test('is less when it has not, in steps, and never less than what is in regions', () => {
    const memory = { reservedBytes: 2 * GIB, residentBytes: GIB };
    expect(offerOf(8 * GIB, host(2 * GIB + kept + MIB), memory, whole)).toEqual(lowered(3 * GIB));
    expect(offerOf(8 * GIB, host(GIB + kept + MIB), memory, whole)).toEqual(lowered(2 * GIB));
  });

  test('says when the host cannot even give what is in regions', () => {
    const memory = { reservedBytes: 2 * GIB, residentBytes: GIB };
    expect(offerOf(8 * GIB, host(kept), memory, whole)).toEqual({ bytes: 2 * GIB, state: 'short' });
  });

  test('does not come and go with a host that breathes at the edge of a step', () => {
    const memory = { reservedBytes: 2 * GIB, residentBytes: GIB };
    for (const edge of [8 * GIB, 3 * GIB, 2 * GIB]) {
      let offer = offerOf(8 * GIB, host(edge - GIB + kept - MIB), memory, whole);
      const fallen = offer;
      for (const more of [MIB, 16 * MIB, -MIB, 31 * MIB]) {
        offer = offerOf(8 * GIB, host(edge - GIB + kept + more), memory, offer);
        expect(offer).toEqual(fallen);
      }
      expect(offerOf(8 * GIB, host(edge - GIB + kept + 32 * MIB), memory, offer)).toEqual(edge === whole.bytes ? whole : lowered(edge));
    }
  });
});
