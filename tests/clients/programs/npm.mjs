// Libraries from npm, each as its documentation says to use it.
import { createRequire } from "node:module"

const require = createRequire(process.env.CLIENTS_NODE + "/")
const nameOf = (error) => error.name
const ways = {
  async "ec2-metadata-service"() {
    const { MetadataService } = require("@aws-sdk/ec2-metadata-service")
    const service = new MetadataService({})
    const get = (path) => service.request(path, {})
    return {
      "instance-id": await get("/latest/meta-data/instance-id"),
      type: await get("/latest/meta-data/instance-type"),
    }
  },
  async "credential-provider-imds"() {
    const { fromInstanceMetadata } = require("@smithy/credential-provider-imds")
    return { credentials: await fromInstanceMetadata({ maxRetries: 0, timeout: 1000 })().catch(nameOf) }
  },
  async "aws-sdk"() {
    process.env.AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE = "1"
    const { MetadataService } = require("aws-sdk")
    const service = new MetadataService({})
    const ask = (path, options = {}) =>
      new Promise((resolve, reject) => {
        service.request(path, options, (error, data) => (error ? reject(error) : resolve(data)))
      })
    const token = await new Promise((resolve) => service.fetchMetadataToken((error, data) => resolve(data)))
    const headers = token ? { "x-aws-ec2-metadata-token": token } : {}
    return {
      token: Boolean(token),
      "instance-id": await ask("/latest/meta-data/instance-id", { headers }),
      type: await ask("/latest/meta-data/instance-type", { headers }),
    }
  },
  async "node-ec2-metadata"() {
    const metadata = require("node-ec2-metadata")
    return {
      ec2: await metadata.isEC2(),
      "instance-id": await metadata.getMetadataForInstance("instance-id"),
      type: await metadata.getMetadataForInstance("instance-type"),
    }
  },
  async "resource-detector-aws"() {
    const { awsEc2Detector } = require("@opentelemetry/resource-detector-aws")
    const { detectResources } = require("@opentelemetry/resources")
    const resource = detectResources({ detectors: [awsEc2Detector] })
    await resource.waitForAsyncAttributes()
    return resource.attributes
  },
  async "gcp-metadata"() {
    const gcp = require("gcp-metadata")
    return {
      available: await gcp.isAvailable(),
      project: await gcp.project("project-id"),
      name: await gcp.instance("name"),
      id: String(await gcp.instance("id")),
      role: await gcp.instance("attributes/role"),
      tags: await gcp.instance("tags"),
    }
  },
  async "resource-detector-gcp"() {
    const { gcpDetector } = require("@opentelemetry/resource-detector-gcp")
    const { detectResources } = require("@opentelemetry/resources")
    const resource = detectResources({ detectors: [gcpDetector] })
    await resource.waitForAsyncAttributes()
    return resource.attributes
  },
}
console.log(JSON.stringify(await ways[process.argv[2]]()))
