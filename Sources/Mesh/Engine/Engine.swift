// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

struct Engine: ~Copyable {
    let queue: CommandQueue
    let hub: NodeHub

    init(configuration: NodeConfiguration, queue: CommandQueue, hub: NodeHub) throws(SystemError) {
        self.queue = queue
        self.hub = hub
    }

    mutating func run() {
        hub.notify(.stopped)
    }
}
