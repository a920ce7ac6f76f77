// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

// What clients leave us with before it is of use to anyone: begun frames, and connections.
extension RelayLoop {
    // MARK: Begun frames

    /// Handles what was kept while the client was paused.
    func parseKept(_ client: RelayClient) {
        let kept = client.partial.count
        guard kept > 0 else { return }
        client.partial.withUnsafeBytes { buffer.copyMemory(from: $0) }
        clearPartial(client)
        parseAny(client, count: kept)
    }

    /// Keeps the begun frame at the end of a read. `needed`: its length as far as known, or 0.
    func keepPartial(_ client: RelayClient, _ bytes: UnsafeRawBufferPointer, needed: Int) {
        client.partial = Array(bytes)
        client.neededBytes = needed
        client.partialSince = now
        client.isPartialLogin = !client.session.isOpen && client.link == nil
        count(bytes.count, of: client)
    }

    /// Adds to a begun frame.
    func extendPartial(_ client: RelayClient, _ bytes: UnsafeRawBufferPointer) {
        client.partial.append(contentsOf: bytes)
        count(bytes.count, of: client)
    }

    func clearPartial(_ client: RelayClient) {
        guard !client.partial.isEmpty else { return }
        partialBytes -= client.partial.count
        if client.isPartialLogin { loginBytes -= client.partial.count }
        client.partial = []
        client.neededBytes = 0
    }

    /// Whether a begun frame takes too long. While the client is not read, that is not its fault.
    func isFrameLate(_ client: RelayClient) -> Bool {
        guard !client.partial.isEmpty, client.link == nil else { return false }
        if !client.pauses.isEmpty { client.partialSince = now }
        return now - min(now, client.partialSince) >= limits.frameNanoseconds
    }

    private func count(_ bytes: Int, of client: RelayClient) {
        partialBytes += bytes
        if client.isPartialLogin { loginBytes += bytes }
        if loginBytes > limits.loginBytes { closeLargest { $0.isPartialLogin } }
        if partialBytes > limits.partialBytes { closeLargest { $0.link == nil && !$0.session.isMeshPeer } }
    }

    /// Closes who holds most; of equals the one that came last.
    private func closeLargest(_ condition: (RelayClient) -> Bool) {
        var largest: RelayClient?
        for client in clients.values where !client.partial.isEmpty && condition(client) {
            let held = (largest?.partial.count ?? 0, largest?.number ?? 0)
            if (client.partial.count, client.number) > held { largest = client }
        }
        guard let largest else { return }
        counters.refusedForLimits += 1
        close(largest)
    }

    // MARK: Sources

    /// Whether one more connection may come from there.
    func isWelcome(_ source: String) -> Bool {
        limits.connectionsPerAddress == 0 || source.isEmpty
            || sources[source, default: 0] < limits.connectionsPerAddress
    }

    func noteSource(_ client: RelayClient) {
        guard limits.connectionsPerAddress > 0, !client.source.isEmpty else { return }
        sources[client.source, default: 0] += 1
    }

    func forgetSource(_ client: RelayClient) {
        guard limits.connectionsPerAddress > 0, let count = sources[client.source] else { return }
        sources[client.source] = count > 1 ? count - 1 : nil
    }

    // MARK: Keys

    /// Closes the oldest connection of a key that has too many.
    func closeSurplus(_ state: KeyState) {
        guard state.members.count > limits.connectionsPerKey, let oldest = state.members.first else { return }
        counters.refusedForLimits += 1
        close(oldest)
    }
}
