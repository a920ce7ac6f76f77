// SPDX-License-Identifier: Apache-2.0

import Mesh
import RPC
import Tailnet
import Testing

/// coordinator.md §10 case 12, wireguard-integration W16.
@Suite struct PeerBookTests {
    private let agent = RawUUID(high: 7, low: 9)

    @Test func `a destination waits for READY, then gets a keepalive`() throws {
        let book = Book()
        book.addDestination(agent)
        #expect(book.apply(.node, agent, at: 0).isEmpty)
        #expect(book.nextDeadline == .init(nanoseconds: 5_000_000_000))
        let outputs = book.apply(.readyForHandshake, agent, at: 1)
        #expect(outputs.count == 1)
        #expect(book.configured(outputs)?.keepaliveSeconds == 25)
        #expect(book.nextDeadline == nil)
        #expect(book.apply(.readyForHandshake, agent, at: 2).isEmpty, "no change, no output")
    }

    @Test func `READY before NODE is remembered`() {
        let book = Book()
        book.addDestination(agent)
        #expect(book.apply(.readyForHandshake, agent, at: 0).isEmpty)
        #expect(book.configured(book.apply(.node, agent, at: 1))?.keepaliveSeconds == 25)
    }

    @Test func `without READY a destination is configured after 5 s; a new NODE starts over`() {
        let book = Book()
        book.addDestination(agent)
        _ = book.apply(.node, agent, at: 0)
        _ = book.apply(.node, agent, at: 3)
        #expect(book.timeout(at: 5).isEmpty)
        #expect(book.configured(book.timeout(at: 8)) != nil)
        #expect(book.isConfigured(agent))
    }

    @Test func `others are configured at once, without keepalive, and are to be confirmed`() {
        let book = Book()
        let (outputs, confirm) = book.applyAll(.node, agent, at: 0)
        #expect(book.configured(outputs)?.keepaliveSeconds == 0)
        #expect(confirm == [agent])
        #expect(book.apply(.readyForHandshake, RawUUID(high: 1, low: 1), at: 0).isEmpty, "of no concern")
        #expect(book.ignored == 1)
    }

    @Test func `DISCONNECTED removes at once`() {
        let book = Book()
        _ = book.apply(.node, agent, at: 0)
        #expect(book.apply(.disconnected, agent, at: 1) == [.remove(agent.meshID)])
        #expect(book.apply(.disconnected, agent, at: 2).isEmpty)
        #expect(book.count == 0)
    }

    @Test func `LOST removes after 15 minutes without a handshake only`() {
        let book = Book()
        _ = book.apply(.node, agent, at: 0)
        #expect(book.apply(.lost, agent, at: 10).isEmpty)
        #expect(book.nextDeadline == .init(nanoseconds: 910_000_000_000))
        #expect(book.timeout(at: 909).isEmpty)
        #expect(book.timeout(at: 910, age: 100).isEmpty, "it shook hands 100 s ago")
        #expect(book.nextDeadline == .init(nanoseconds: 1_710_000_000_000))
        #expect(book.timeout(at: 1_710, age: 900) == [.remove(agent.meshID)])
    }

    @Test func `NODE clears LOST, losing the coordinator marks all`() {
        let book = Book()
        _ = book.apply(.node, agent, at: 0)
        book.loseAll(at: 1)
        #expect(book.nextDeadline == .init(nanoseconds: 901_000_000_000))
        _ = book.apply(.node, agent, at: 2)
        #expect(book.nextDeadline == nil)
    }

    @Test func `a destination with a new key must say READY again`() {
        let book = Book()
        book.addDestination(agent)
        _ = book.apply(.node, agent, at: 0)
        _ = book.apply(.readyForHandshake, agent, at: 0)
        #expect(book.apply(.node, agent, at: 1).count == 1)
        #expect(book.applyAll(.node, agent, at: 2, key: 5).0.isEmpty)
        let outputs = book.apply(.readyForHandshake, agent, at: 3)
        #expect(book.configured(outputs)?.key.bytes.first == 5)
    }

    @Test func `a key that comes back under another id keeps its place in the node, a stolen one is refused`()
    {
        let book = Book()
        let newer = RawUUID(high: 8, low: 8)
        _ = book.apply(.node, agent, at: 0)
        book.loseAll(at: 1)
        let outputs = book.apply(.node, newer, at: 2)
        #expect(book.configured(outputs)?.id == agent.meshID)
        #expect(book.count == 1)
        #expect(book.apply(.disconnected, newer, at: 3) == [.remove(agent.meshID)])
        _ = book.apply(.node, agent, at: 4)
        #expect(book.applyAll(.node, newer, at: 5, address: "fd7a:115c:a1e0::5/128").0.isEmpty)
        #expect(book.ignored == 1)
    }

    @Test func `nodes without home relay or with bad keys are ignored`() {
        let book = Book()
        #expect(book.applyAll(.node, agent, at: 0, region: 0).0.isEmpty)
        #expect(book.applyAll(.node, agent, at: 0, disco: "discokey:12").0.isEmpty)
        #expect(book.ignored == 2)
        #expect(book.count == 0)
    }

    @Test func `only the peer's own host addresses are allowed`() throws {
        var node = sampleNode(key: 1)
        node.allowedIps += ["::/0", "fd7a:115c:a1e0::2/128", "10.0.0.0/8"]
        let peer = try #require(MeshPeer(id: agent, node: node))
        #expect(peer.allowedIPs.map(\.description) == ["fd7a:115c:a1e0::1/128"])
        #expect(peer.endpoints.map(\.description) == ["192.0.2.1:4000"])
        #expect(peer.homeRegion == 999)
    }
}

@Suite struct AddressTests {
    @Test func `addresses of an agent follow from its id`() throws {
        let id = try #require(RawUUID("b1e2c3d4-0506-4708-890a-0b0c0d0e0f10"))
        #expect(id.tailnetAddress.description == "fd7a:115c:a1e0:4708:890a:b0c:d0e:f10")
        #expect(id.coderAddress.description == "fd60:627a:a42b:4708:890a:b0c:d0e:f10")
        #expect(id.meshID.description == id.description)
    }

    @Test func `pauses double up to the limit and are jittered`() {
        var backoff = Backoff(from: .milliseconds(100), to: .seconds(10), seed: 1)
        var ceiling = Duration.milliseconds(100)
        for _ in 0..<20 {
            let pause = backoff.next()
            #expect(pause <= ceiling && pause >= ceiling / 2)
            ceiling = min(ceiling * 2, .seconds(10))
        }
        backoff.reset()
        #expect(backoff.next() <= .milliseconds(100))
    }
}

func sampleNode(key: UInt8, region: Int32 = 999, disco: String? = nil) -> TailnetNode {
    var node = TailnetNode()
    node.key.append(contentsOf: [0x6e, 0x70] + [UInt8](repeating: key, count: 32))
    node.disco = disco ?? "discokey:" + String(repeating: "0a", count: 32)
    node.preferredDerp = region
    node.addresses = ["fd7a:115c:a1e0::1/128"]
    node.allowedIps = node.addresses
    node.endpoints = ["192.0.2.1:4000"]
    return node
}

/// A book behind a reference, with times in seconds.
private final class Book {
    private var book = PeerBook()
    var nextDeadline: Instant? { book.nextDeadline }
    var ignored: Int { book.ignored }
    var count: Int { book.count }
    func isConfigured(_ id: RawUUID) -> Bool { book.isConfigured(id) }
    func addDestination(_ id: RawUUID) { book.addDestination(id) }
    func loseAll(at seconds: UInt64) { book.loseAll(now: Instant(nanoseconds: seconds * 1_000_000_000)) }

    func apply(
        _ kind: TailnetCoordinateResponse.PeerUpdate.Kind, _ id: RawUUID, at seconds: UInt64
    ) -> [PeerBook.Output] {
        applyAll(kind, id, at: seconds).0
    }

    func applyAll(
        _ kind: TailnetCoordinateResponse.PeerUpdate.Kind, _ id: RawUUID, at seconds: UInt64, key: UInt8 = 3,
        region: Int32 = 999, disco: String? = nil, address: String? = nil
    ) -> ([PeerBook.Output], [RawUUID]) {
        var update = TailnetCoordinateResponse.PeerUpdate()
        update.id = id.bytes()
        update.kind = kind
        if kind == .node { update.node = sampleNode(key: key, region: region, disco: disco) }
        if let address {
            update.node.addresses = [address]
            update.node.allowedIps = [address]
        }
        let result = book.apply([update], now: Instant(nanoseconds: seconds * 1_000_000_000))
        return (result.outputs, result.confirm)
    }

    func timeout(at seconds: UInt64, age: UInt64? = nil) -> [PeerBook.Output] {
        let id = RawUUID(high: 7, low: 9)
        return book.handleTimeout(
            now: Instant(nanoseconds: seconds * 1_000_000_000),
            sinceHandshake: age.map { [id.meshID: .seconds($0)] } ?? [:])
    }

    func configured(_ outputs: [PeerBook.Output]) -> MeshPeer? {
        guard outputs.count == 1, case .configure(let peer) = outputs[0] else { return nil }
        return peer
    }
}
