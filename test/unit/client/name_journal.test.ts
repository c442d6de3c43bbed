/** The journal of names while the manager answers late. */
import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals';
import type { NameOperation } from '../../../src/base/messages.js';
import { NameJournal } from '../../../src/client/name_journal.js';
import { ScriptedManager } from './scripted_manager.js';

const unlink = (name: string): NameOperation => ({ kind: 'unlink', parent: 2, name, ino: 9, released: false, at: [1, 0] });

describe('a manager that answers late', () => {
  let manager: ScriptedManager;
  let journal: NameJournal;
  let answers: (() => void)[];

  beforeEach(() => {
    jest.useFakeTimers();
    manager = new ScriptedManager();
    answers = [];
    manager.script.names = () => new Promise((resolve) => answers.push(() => resolve({ failed: [] })));
    journal = new NameJournal(manager);
  });
  afterEach(() => {
    jest.useRealTimers();
  });

  test('nothing more is done without it from the moment when it is a second behind, until it has caught up', async () => {
    journal.append(unlink('a'));
    await jest.advanceTimersByTimeAsync(900);
    expect(journal.isOpen).toBe(true);
    await jest.advanceTimersByTimeAsync(200);
    expect(journal.isOpen).toBe(false);
    answers[0]?.();
    await jest.advanceTimersByTimeAsync(0);
    expect(journal.isOpen).toBe(true);
  });

  test('what it has not answered yet has not failed, however late it is', async () => {
    const failed: string[] = [];
    const done: string[] = [];
    journal.listen({ done: ({ name }) => done.push(name), failed: ({ name }) => failed.push(name) });
    journal.append(unlink('a'));
    const settled = journal.settled();
    await jest.advanceTimersByTimeAsync(60_000);
    expect({ failed, done }).toEqual({ failed: [], done: [] });
    answers[0]?.();
    await settled;
    expect({ failed, done }).toEqual({ failed: [], done: ['a'] });
  });
});
