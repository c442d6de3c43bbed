/** The manager's HTTP interface as the CLI asks it. */
import { askManager } from '../base/manager_http.js';
import type { ManagerAccess } from './connection.js';

export class ManagerApi {
  constructor(private readonly access: ManagerAccess) {}

  get url(): string {
    return this.access.url;
  }

  get<Answer>(path: string, query: Record<string, string> = {}): Promise<Answer> {
    return this.ask<Answer>('GET', path, query);
  }

  async ask<Answer>(method: string, path: string, query: Record<string, string> = {}, body?: unknown, timeoutMs?: number): Promise<Answer> {
    const { url: manager, token, ca, name, keys } = this.access;
    const search = new URLSearchParams(query).toString();
    return (await askManager(
      { manager, token, ca, name, keys },
      method,
      `${path}${search === '' ? '' : `?${search}`}`,
      body,
      timeoutMs,
    )) as Answer;
  }
}
