"use strict";
// Shows the OpenAPI description of the service; everything is set as text, never as HTML.

const add = (parent, tag, text) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
};

const nameOf = (schema) => {
  if (!schema) return "";
  if (schema === true) return "any"; // as JSON Schema has it
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `[${nameOf(schema.items)}]`;
  if (schema.type === "object" && schema.additionalProperties) return `{…: ${nameOf(schema.additionalProperties)}}`;
  return schema.type || "any";
};

const table = (parent, rows) => {
  if (!rows.length) return;
  const body = add(add(parent, "table"), "tbody");
  for (const [name, type, meaning] of rows) {
    const row = add(body, "tr");
    add(add(row, "th"), "code", name);
    add(row, "td", type);
    add(row, "td", meaning || "");
  }
};

const showRoute = (path, method, route) => {
  const section = add(document.getElementById("routes"), "section");
  add(add(section, "h3"), "code", `${method.toUpperCase()} ${path}`);
  add(section, "p", route.description || route.summary || "");
  table(section, (route.parameters || []).map((parameter) => [
    parameter.name,
    nameOf(parameter.schema) + (parameter.schema.default === undefined ? "" : ` = ${parameter.schema.default}`),
    `${parameter.in}${parameter.required ? "" : ", optional"}. ${parameter.description || ""}`,
  ]));
  const bodies = (route.requestBody && route.requestBody.content) || {};
  for (const [type, content] of Object.entries(bodies)) add(section, "p", `Body: ${type} ${nameOf(content.schema)}`);
  for (const [type, content] of Object.entries((route.responses["200"] || {}).content || {})) {
    add(section, "p", `Answer: ${type} ${nameOf(content.schema)}`);
  }
};

const show = (description) => {
  add(document.getElementById("summary"), "span", ` ${description.info.description}`);
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, route] of Object.entries(methods)) showRoute(path, method, route);
  }
  const types = Object.entries((description.components || {}).schemas || {});
  for (const [name, schema] of types.filter(([, schema]) => schema.properties)) {
    const section = add(document.getElementById("types"), "section");
    add(add(section, "h3"), "code", name);
    add(section, "p", schema.description || "");
    table(section, Object.entries(schema.properties).map(([key, value]) => [key, nameOf(value), value.description]));
  }
};

fetch("/api/v1/openapi.json")
  .then((answer) => answer.json())
  .then(show)
  .catch((error) => add(document.getElementById("routes"), "p", `The description cannot be read: ${error}`));
