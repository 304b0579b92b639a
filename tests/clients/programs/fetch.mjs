// node's own fetch, its http module, or axios.
import http from "node:http"
import { createRequire } from "node:module"

const [how, url] = process.argv.slice(2)
const require = createRequire(process.env.CLIENTS_NODE + "/")
const ways = {
  async fetch() {
    const reply = await fetch(url)
    if (!reply.ok) throw new Error(String(reply.status))
    return reply.text()
  },
  http: () =>
    new Promise((resolve, reject) => {
      http.get(url, (reply) => {
        let text = ""
        reply.on("data", (data) => (text += data))
        reply.on("end", () => (reply.statusCode === 200 ? resolve(text) : reject(new Error(String(reply.statusCode)))))
      }).on("error", reject)
    }),
  async axios() {
    const axios = require("axios")
    return (await axios.get(url, { responseType: "text", timeout: 5000 })).data
  },
}
process.stdout.write(await ways[how]())
