/**
 * The manager's figures in Prometheus' text format.
 */
import type { Parts } from './parts.js';
import { describeStatus } from './status.js';

interface Metric {
  name: string;
  help: string;
  type: 'gauge' | 'counter';
  samples: [labels: Record<string, string>, value: number][];
}

export function renderMetrics(parts: Parts): string {
  const status = describeStatus(parts);
  const perAppliance = (of: (appliance: (typeof status.appliances)[number]) => number): Metric['samples'] =>
    status.appliances.map((appliance) => [{ appliance: appliance.id }, of(appliance)]);
  const one = (value: number): Metric['samples'] => [[{}, value]];
  const metrics: Metric[] = [
    { name: 'extmem_pool_bytes', help: 'Memory donated by appliances that are up', type: 'gauge', samples: one(status.pool.totalBytes) },
    { name: 'extmem_pool_reserved_bytes', help: 'Memory in regions', type: 'gauge', samples: one(status.pool.reservedBytes) },
    { name: 'extmem_pool_used_bytes', help: 'Memory that files are in', type: 'gauge', samples: one(status.pool.usedBytes) },
    { name: 'extmem_pool_free_bytes', help: 'Room for new regions', type: 'gauge', samples: one(status.pool.freeBytes) },
    {
      name: 'extmem_appliance_up',
      help: '1 while the appliance is up',
      type: 'gauge',
      samples: perAppliance(({ state }) => Number(state === 'up')),
    },
    {
      name: 'extmem_appliance_donated_bytes',
      help: 'Memory that the appliance donates',
      type: 'gauge',
      samples: perAppliance(({ donatedBytes }) => donatedBytes),
    },
    {
      name: 'extmem_appliance_reserved_bytes',
      help: 'Memory in regions of the appliance',
      type: 'gauge',
      samples: perAppliance(({ reservedBytes }) => reservedBytes),
    },
    {
      name: 'extmem_appliance_resident_bytes',
      help: 'Memory of the appliance that was written to',
      type: 'gauge',
      samples: perAppliance(({ residentBytes }) => residentBytes),
    },
    { name: 'extmem_clients', help: 'Known clients', type: 'gauge', samples: one(status.clients.length) },
    {
      name: 'extmem_clients_connected',
      help: 'Clients with an open session',
      type: 'gauge',
      samples: one(status.clients.filter(({ alive }) => alive).length),
    },
    { name: 'extmem_files', help: 'Inodes', type: 'gauge', samples: one(status.files) },
    { name: 'extmem_files_held', help: 'Files that some client holds a delegation of', type: 'gauge', samples: one(status.openFiles) },
    {
      name: 'extmem_lost_regions',
      help: 'Regions lost with an incarnation of their appliance',
      type: 'gauge',
      samples: one(status.lostRegions),
    },
    { name: 'extmem_fences_total', help: 'Clients fenced since the manager started', type: 'counter', samples: one(status.fences) },
  ];
  return metrics.map(render).join('');
}

function render({ name, help, type, samples }: Metric): string {
  const lines = samples.map(([labels, value]) => {
    const pairs = Object.entries(labels).map(
      ([label, text]) => `${label}="${text.replace(/[\\"\n]/g, (special) => (special === '\n' ? '\\n' : `\\${special}`))}"`,
    );
    return `${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}\n`;
  });
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join('')}`;
}
