// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// Gives memory that transfers have left behind back to the system once all streams have ended: an idle agent stays
/// small for months. The first time after the start, which touches more code and memory than all that follows. Looks
/// every 15 s, which costs one message to the mesh's thread.
struct IdleMemory: Sendable {
    private static let interval = Duration.seconds(15)
    /// 256 KiB of traffic since the last time; less leaves nothing worth the walk through the heap.
    private static let threshold: UInt64 = 256 << 10

    let node: Node

    /// Runs until cancelled or the node is closed.
    func run() async {
        var released: UInt64?
        while true {
            do {
                try await Task.sleep(for: Self.interval)
                let status = try await node.status()
                let traffic = status.counters.receivedBytes &+ status.counters.sentBytes
                guard status.streams == 0 else { continue }
                if let released, traffic &- released <= Self.threshold { continue }
                released = traffic
                ProgramMemory.releaseFree()
            } catch {
                return
            }
        }
    }
}
