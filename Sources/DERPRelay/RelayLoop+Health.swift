// SPDX-License-Identifier: Apache-2.0

internal import Mesh

// What clients are told in words, for people to read: frames of type Health. An empty one says that all is well.
// `derp.md` §2, §6.4. Other relays are not told.
extension RelayLoop {
    /// Told to a connection whose key another connection uses, too.
    static let duplicateProblem = "another connection uses the same node key and gets the packets for it"
    static let crowdedProblem = "this relay is overloaded and drops packets"

    /// `client` spoke: it gets the packets for its key from now on. Who got them before hears why that is over: once,
    /// because two that use one key may take turns for each packet.
    func activate(_ client: RelayClient, of state: KeyState) {
        let previous = state.active
        state.noteSpeaker(client)
        guard let previous, previous !== client, !previous.isClosed, !previous.isToldDuplicate else { return }
        previous.isToldDuplicate = true
        tellProblem(previous)
    }

    /// `client` is the only connection of its key again.
    func endDuplicate(_ client: RelayClient) {
        guard client.isToldDuplicate else { return }
        client.isToldDuplicate = false
        sendHealth(visibleProblem, to: client)
    }

    /// Tells a client what is wrong for it, if anything.
    func tellProblem(_ client: RelayClient) {
        let text = client.isToldDuplicate ? Self.duplicateProblem : visibleProblem
        if !text.isEmpty { sendHealth(text, to: client) }
    }

    /// The relay itself has a problem, or another one, or none any more.
    func setProblem(_ text: String) {
        let before = visibleProblem
        problem = text
        if visibleProblem != before { tellAll() }
    }

    /// Once per second: whether queues were cut short lately, because all of them together were too long.
    func watchLoad() {
        let wasCrowded = isCrowded
        isCrowded = cutAt != 0 && now - min(now, cutAt) < 2_000_000_000
        if isCrowded != wasCrowded, problem.isEmpty { tellAll() }
    }

    private var visibleProblem: String { problem.isEmpty && isCrowded ? Self.crowdedProblem : problem }

    private func tellAll() {
        let text = visibleProblem
        for client in clients.values where client.key != nil && !client.isToldDuplicate {
            sendHealth(text, to: client)
        }
    }

    private func sendHealth(_ text: String, to client: RelayClient) {
        guard client.link == nil, !client.session.isMeshPeer else { return }
        counters.healthSent += 1
        sendControl(DERP.frame(.health, Array(text.utf8)), to: client)
    }
}
