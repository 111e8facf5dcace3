// Uses all six operations through the client in the quickstart, in Node and in a page in a browser.
import {
  complete, connect, create, load, page, remove, save, type Query, type Task, type TaskCreate, type TaskUpdate,
} from "./tasks.js";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function assertType<_ extends true>(): void {}

// A type that differs from these does not compile.
assertType<
  Same<Task, {
    id: string;
    user_id: string;
    title: string;
    description: string | null;
    completed: boolean;
    created_at: string;
    updated_at: string;
  }>
>();
assertType<Same<TaskCreate, { title: string; description?: string | null; completed?: boolean }>>();
assertType<Same<TaskUpdate, { title?: string; description?: string | null; completed?: boolean }>>();
// @ts-expect-error a title is never null
const noTitle: TaskUpdate = { title: null };
// @ts-expect-error `status` is all, pending or completed
const noStatus: Query = { status: "open" };

function check(condition: boolean, expected: string): asserts condition {
  if (!condition) throw new Error(`expected ${expected}`);
}

/** The message of the error that the promise is rejected with. */
async function failure(promise: Promise<unknown>): Promise<string> {
  return promise.then(() => check(false, "an error"), (error) => error.message);
}

/** The operations that work, for the user that the tokens belong to. Throws at the first that does not. */
export async function walk(baseUrl: string, userId: string, fetchToken: () => Promise<string>): Promise<string[]> {
  const tokens = [Promise.resolve("expired")];
  let fetched = 0;
  const client = connect(userId, () => (fetched++, tokens.pop() ?? fetchToken()), baseUrl);
  const { api, user } = client;
  const walked: string[] = [];

  const first = await create(client, { title: "Buy milk", description: null }, "key of this form");
  check(first.title === "Buy milk" && first.description === null && !first.completed, "the task as requested");
  check(fetched === 2, "one new token after a refused one");
  const again = await api.POST("/api/{user_id}/tasks", {
    params: { path: user, header: { "Idempotency-Key": "key of this form" } },
    body: { title: "Buy milk" },
  });
  check(again.data?.id === first.id, "the same task under the same key");
  check(again.response.headers.get("Idempotency-Replayed") === "true", "Idempotency-Replayed to be readable");
  check(again.response.headers.get("Location") === `/api/${userId}/tasks/${first.id}`, "Location to be readable");
  check(again.response.headers.get("X-Request-ID") !== null, "X-Request-ID to be readable");
  check((await failure(create(client, { title: " " }, "another"))).startsWith("title: "), "a sentence");
  let asked = 0;
  const signedOut = connect(userId, () => (asked++, Promise.reject(new Error("signed out"))), baseUrl);
  check((await failure(create(signedOut, { title: "Buy milk" }, "a third"))) === "signed out" && asked === 1, "no retry");
  walked.push("create_task");

  for (const title of ["Two", "Three", "Four", "Five"]) await create(client, { title }, title);
  const query: Query = { status: "pending", limit: 2, total: true };
  const titles: string[] = [];
  let pages = 0;
  let cursor: string | undefined;
  do {
    const { tasks, next, total } = await page(client, { ...query, cursor });
    check(total === 5, "the total on every page");
    titles.push(...tasks.map((task) => task.title));
    cursor = next;
    pages++;
  } while (cursor);
  check(titles.join() === "Five,Four,Three,Two,Buy milk" && pages === 3, "three pages, newest first");
  check((await page(client, { search: "MILK" })).tasks.length === 1, "one task with this word");
  walked.push("list_tasks");

  const loaded = await load(client, first.id);
  check(loaded.task.updated_at === first.updated_at, "the task as it was created");
  const path = { ...user, task_id: first.id };
  const cached = await api.GET("/api/{user_id}/tasks/{task_id}", {
    params: { path, header: { "If-None-Match": loaded.etag } },
    cache: "no-store", // the request itself, not the browser's cache
  });
  check(cached.response.status === 304, "304 for an unchanged task");
  walked.push("get_task");

  const saved = await save(client, loaded, { title: "Buy oat milk" });
  check(saved?.task.title === "Buy oat milk" && saved.etag !== loaded.etag, "another title and version");
  check((await save(client, loaded, { title: "Too late" })) === null, "no change to a newer version");
  const refused = await api.PUT("/api/{user_id}/tasks/{task_id}", { params: { path }, body: noTitle });
  check(refused.response.status === 422 && refused.error !== undefined, "422 for a title of null");
  check("errors" in refused.error && refused.error.errors[0]?.loc.join() === "body,title", "the field that was refused");
  check((await api.GET("/api/{user_id}/tasks", { params: { path: user, query: noStatus } })).response.status === 422, "422");
  walked.push("update_task");

  const toggled = await api.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: { path } });
  check(toggled.data?.completed === true, "a completed task");
  check((await complete(client, first.id, true)).completed, "a task that stays completed");
  walked.push("toggle_task");

  await remove(client, first.id);
  await remove(client, first.id);
  check((await failure(load(client, first.id))).includes("no such task"), "the task to be deleted");
  walked.push("delete_task");
  return walked;
}
