/**
 * Prometheus text from nested counters: `{ cache: { hits: 3 } }` becomes `extmem_mount_cache_hits 3`. Only numbers and
 * bigints are told; names are the path, in snake case.
 */
const snake = (name: string): string =>
  name
    .replace(/([a-z0-9])([A-Z])/g, '$1_$2')
    .replace(/[^a-zA-Z0-9_]/g, '_')
    .toLowerCase();

export function renderMetrics(prefix: string, values: Record<string, unknown>, labels: Record<string, string> = {}): string {
  const lines: string[] = [];
  const suffix = renderLabels(labels);
  const walk = (name: string, value: unknown): void => {
    if (typeof value === 'number' || typeof value === 'bigint') {
      lines.push(`# TYPE ${name} gauge`, `${name}${suffix} ${value}`);
    } else if (typeof value === 'boolean') {
      walk(name, value ? 1 : 0);
    } else if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) walk(`${name}_${snake(key)}`, inner);
    }
  };
  walk(prefix, values);
  return `${lines.join('\n')}\n`;
}

function renderLabels(labels: Record<string, string>): string {
  const pairs = Object.entries(labels).map(
    ([name, value]) => `${name}="${value.replace(/[\\"\n]/g, (c) => (c === '\n' ? '\\n' : `\\${c}`))}"`,
  );
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}
