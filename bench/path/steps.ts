/** From the trace points of many requests to how long each step of a request takes. */
import type { TracePoint } from '../../src/binding/index.js';
import { median } from '../report.js';

const FIRST = 'fuse.request';
const LAST = 'fuse.reply';
/** Points that are no step of their own: pages change state several times on the way of one request. */
const PASSED_OVER = new Set(['cache.state']);

export interface Step {
  from: string;
  to: string;
  micros: number;
}

/** Requests one after the other, from one caller: what lies between a request and its reply belongs to it. */
function requestsOf(points: readonly TracePoint[]): TracePoint[][] {
  const requests: TracePoint[][] = [];
  let current: TracePoint[] | undefined;
  for (const point of [...points].sort((left, right) => left.ns - right.ns)) {
    if (point.point === FIRST) current = [];
    if (current === undefined || PASSED_OVER.has(point.point)) continue;
    current.push(point);
    if (point.point !== LAST) continue;
    requests.push(current);
    current = undefined;
  }
  return requests;
}

const pathOf = (request: readonly TracePoint[]): string => request.map(({ point }) => point).join(' ');

/** The steps of the way that most requests took, medians over those that took it. */
export function stepsOf(points: readonly TracePoint[]): Step[] {
  const byPath = new Map<string, TracePoint[][]>();
  for (const request of requestsOf(points)) byPath.set(pathOf(request), [...(byPath.get(pathOf(request)) ?? []), request]);
  const usual = [...byPath.values()].sort((left, right) => right.length - left.length)[0] ?? [];
  const way = usual[0] ?? [];
  return way.slice(1).map(({ point: to }, index) => {
    const micros = usual.map((request) => ((request[index + 1]?.ns ?? NaN) - (request[index]?.ns ?? NaN)) / 1000);
    return { from: way[index]?.point ?? '', to, micros: median(micros) };
  });
}
