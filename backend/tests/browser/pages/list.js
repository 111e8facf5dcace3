// A list of tasks without a library, for pages that send their requests in different ways.
const query = new URLSearchParams(location.search);
const TASKS = `${query.get("api")}/api/${query.get("user")}/tasks`;

const element = (name, properties) => Object.assign(document.createElement(name), properties);

/** Show the tasks. `options` are those of fetch; every path ends with `ending`. */
export function start(options, ending = "") {
  const message = element("p", { role: "alert" });
  const form = element("form");
  const title = element("input", { placeholder: "Title" });
  const status = element("select");
  const search = element("input", { placeholder: "Search" });
  const list = element("ul");
  form.append(title, element("button", { textContent: "Add" }));
  status.append(...["all", "pending", "completed"].map((name) => element("option", { textContent: name })));
  document.body.append(message, form, status, search, list);

  async function request(path, method, body) {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(TASKS + path, { ...options, method, headers, body: body && JSON.stringify(body) });
    const data = response.status === 204 ? null : await response.json();
    message.textContent = response.ok ? "" : String(data.detail);
    return data;
  }

  async function show() {
    const filter = new URLSearchParams(search.value ? { status: status.value, search: search.value } : { status: status.value });
    const tasks = await request(`${ending}?${filter}`);
    list.replaceChildren(...tasks.map((task) => {
      const item = element("li");
      const completed = element("input", { type: "checkbox", checked: task.completed });
      completed.onchange = () => request(`/${task.id}/complete${ending}`, "PATCH", {}).then(show);
      const remove = element("button", { textContent: "Delete" });
      remove.onclick = () => request(`/${task.id}${ending}`, "DELETE").then(show);
      item.append(completed, element("span", { textContent: task.title }), remove);
      return item;
    }));
  }

  form.onsubmit = async (event) => {
    event.preventDefault();
    const created = await request(ending, "POST", { title: title.value });
    if (created.id) await show();
  };
  status.onchange = search.oninput = show;
  show();
}
