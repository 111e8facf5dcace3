// Walks all six operations with the client of the quickstart; runs in Node and in a browser page alike.
import { connect, create, load, page, reason, save, type Task, type TaskCreate, type TaskUpdate } from "./tasks.js";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function holds<_ extends true>(): void {}

// What the generated types must say; a false one does not compile.
holds<
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
holds<Same<TaskCreate, { title: string; description?: string | null; completed?: boolean }>>();
holds<Same<TaskUpdate, { title?: string; description?: string | null; completed?: boolean }>>();

function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`expected ${what}`);
}

/** The operations that were seen to work, for the user that `token` belongs to; throws at the first that does not. */
export async function walk(baseUrl: string, userId: string, token: () => Promise<string>): Promise<string[]> {
  const client = connect(baseUrl, token);
  const ofUser = { path: { user_id: userId } };
  const walked: string[] = [];

  const first = await create(client, userId, { title: "Buy milk", description: null }, "the key of this form");
  check(first.title === "Buy milk" && first.description === null && !first.completed, "the task that was asked for");
  const again = await client.POST("/api/{user_id}/tasks", {
    params: { ...ofUser, header: { "idempotency-key": "the key of this form" } },
    body: { title: "Buy milk" },
  });
  check(again.data?.id === first.id, "the same task under the same key");
  check(again.response.headers.get("Idempotency-Replayed") === "true", "Idempotency-Replayed to be readable");
  check(again.response.headers.get("Location") === `/api/${userId}/tasks/${first.id}`, "Location to be readable");
  check(again.response.headers.get("X-Request-ID") !== null, "X-Request-ID to be readable");
  walked.push("create_task");

  for (const title of ["Two", "Three", "Four", "Five"]) await create(client, userId, { title });
  const titles: string[] = [];
  let pages = 0;
  let cursor: string | undefined;
  do {
    const { tasks, next } = await page(client, userId, { completed: false, limit: 2 }, cursor);
    titles.push(...tasks.map((task) => task.title));
    cursor = next;
    pages++;
  } while (cursor);
  check(titles.join() === "Five,Four,Three,Two,Buy milk" && pages === 3, "three pages, newest first");
  const counted = await client.GET("/api/{user_id}/tasks", { params: { ...ofUser, query: { total: true } } });
  check(counted.response.headers.get("X-Total-Count") === "5", "X-Total-Count to be readable");
  walked.push("list_tasks");

  const seen = await load(client, userId, first.id);
  check(seen.task.updated_at === first.updated_at, "the task as it was created");
  const path = { user_id: userId, task_id: first.id };
  const known = await client.GET("/api/{user_id}/tasks/{task_id}", {
    params: { path, header: { "if-none-match": seen.etag } },
    cache: "no-store", // the page's own question, not the browser cache's
  });
  check(known.response.status === 304, "304 for a task that is known");
  walked.push("get_task");

  const saved = await save(client, seen, { title: "Buy oat milk" });
  check(saved?.task.title === "Buy oat milk" && saved.etag !== seen.etag, "another title and version");
  check((await save(client, seen, { title: "Too late" })) === null, "no change over somebody else's");
  const refused = await client.PUT("/api/{user_id}/tasks/{task_id}", { params: { path }, body: { title: " " } });
  check(refused.response.status === 422 && typeof refused.error?.detail === "object", "a typed 422");
  check(refused.error.detail[0]?.loc.join() === "body,title", "the place of what was refused");
  check(reason(refused.error).startsWith("title: "), "a sentence for people");
  // @ts-expect-error a title is never null
  const nothing: TaskUpdate = { title: null };
  check((await client.PUT("/api/{user_id}/tasks/{task_id}", { params: { path }, body: nothing })).error !== undefined, "422");
  walked.push("update_task");

  const flipped = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: { path } });
  check(flipped.data?.completed === true, "a completed task");
  const set = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: { path }, body: { completed: true } });
  check(set.data?.completed === true, "a task that stays completed");
  walked.push("toggle_task");

  const deleted = await client.DELETE("/api/{user_id}/tasks/{task_id}", { params: { path } });
  check(deleted.response.status === 204, "the task to be deleted");
  const gone = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
  check(gone.response.status === 404 && gone.error !== undefined, "404 for a task that is gone");
  walked.push("delete_task");
  return walked;
}
