/** `extmem access`: who may do what with an allocation. */
import { accessOf, apiOf, pathOf, routeOf } from './allocations.js';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { printJson, printLine, printWarning } from './output.js';

interface AccessAnswer {
  rules: string;
  version: number;
  pending: string[];
}

export async function runAccess(call: Invocation): Promise<ExitCode> {
  const [name] = call.args;
  if (name === undefined) throw new UsageError('say which path');
  const path = pathOf(name);
  const { access, accessKey } = accessOf(call);
  if (call.has('open') && (access !== undefined || accessKey !== undefined)) throw new UsageError('--open takes no rules and no key');
  if (accessKey !== undefined && access === undefined) throw new UsageError('--access-key-file goes with --allow');
  const rules = call.has('open') ? '' : access;
  const route = `/v1/access/${routeOf(path).replace(/^\/v1\/allocations\//, '')}`;
  const api = apiOf(call);
  const answer =
    rules === undefined
      ? await api.get<AccessAnswer>(route)
      : await api.ask<AccessAnswer>('PUT', route, {}, { rules, ...(accessKey === undefined ? {} : { key: accessKey }) });
  if (call.json) printJson(answer);
  else printLine(answer.rules === '' ? `${path}: whoever has the join token may do everything` : `${path}: ${answer.rules}`);
  if (answer.pending.length > 0)
    printWarning(`${answer.pending.join(', ')}: out of reach; what was handed out there is taken back before it is used again`);
  return ExitCode.ok;
}
