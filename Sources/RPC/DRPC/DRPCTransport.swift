// SPDX-License-Identifier: Apache-2.0

/// One end of a dRPC transport: calls one after the other over one byte stream. No I/O.
///
/// Drive it like this: feed bytes by `receive`, call `nextEvent()` until nil, and send what `takeOutput()` gives.
/// An end works on one call at a time, named by its number; local steps on a finished call do nothing.
/// Source: rpc-transport §4.
public struct DRPCTransport: Sendable {
    public enum Role: Sendable {
        /// Starts calls.
        case client
        /// Answers them.
        case server
    }

    /// How a call ended.
    public enum End: Hashable, Sendable {
        /// The peer closed the call, or both sides have sent all they had.
        case closed
        /// The peer reports a failure. Code 0 means none, 12 means "no such call".
        case failed(code: UInt64, text: String)
        /// The peer cancelled, or started a newer call on the same transport.
        case cancelled
    }

    public enum Event: Hashable, Sendable {
        /// Server: the peer started a call.
        case invoked(name: String, metadata: [String: String])
        case message([UInt8])
        /// The peer sends no more messages; the call goes on.
        case sendClosed
        case ended(End)
    }

    /// 1,024 bytes: longest name of a call; upstream's longest has about 70.
    public static let maximumNameLength = 1_024

    private let role: Role
    private var reader: DRPCPacketReader
    /// Number of the current or last call; 0 before the first.
    private var call: UInt64 = 0
    private var isLive = false
    private var localClosed = false
    private var remoteClosed = false
    private var nextMessage: UInt64 = 1
    private var metadata: (call: UInt64, values: [String: String])?
    private var output: [UInt8] = []

    public init(role: Role, packetLimit: Int = DRPCPacketReader.maximumPacketSize) {
        self.role = role
        reader = DRPCPacketReader(limit: packetLimit)
    }

    /// Whether a call is going on.
    public var isCallLive: Bool { isLive }

    /// Received bytes that have not become events yet.
    public var bufferedCount: Int { reader.bufferedCount }

    // MARK: - Input

    /// Adds bytes of the stream.
    public mutating func receive(_ bytes: [UInt8]) { reader.append(bytes) }

    /// The next thing that happened; nil when more input is needed. An error is fatal for the transport.
    public mutating func nextEvent() throws(DRPCError) -> Event? {
        while let packet = try reader.nextPacket() {
            if let event = try handle(packet) { return event }
        }
        return nil
    }

    private mutating func handle(_ packet: DRPCPacket) throws(DRPCError) -> Event? {
        guard let kind = DRPCPacket.Kind(rawValue: packet.kind) else {
            guard packet.isControl else { throw .unknownKind(packet.kind) }
            return nil
        }
        if kind == .invoke || kind == .invokeMetadata { return try handleInvoke(packet, kind) }
        guard packet.stream == call, isLive else { return nil }  // finished, older, or never started: ignored
        switch kind {
        case .message:
            return remoteClosed ? nil : .message(packet.data)
        case .closeSend:
            guard !remoteClosed else { return nil }
            remoteClosed = true
            return localClosed ? finish(.closed) : .sendClosed
        case .close: return finish(.closed)
        case .cancel: return finish(.cancelled)
        case .error: return finish(Self.failure(packet.data))
        case .invoke, .invokeMetadata: return nil  // handled above
        }
    }

    private mutating func handleInvoke(
        _ packet: DRPCPacket, _ kind: DRPCPacket.Kind
    ) throws(DRPCError) -> Event? {
        guard role == .server else { throw .unexpectedInvoke }
        guard packet.stream > call else {
            guard packet.stream < call || !isLive else { throw .unexpectedInvoke }
            return nil
        }
        if kind == .invokeMetadata {
            metadata = (packet.stream, try DRPCMetadata.decode(packet.data))
            return nil
        }
        guard packet.data.count <= Self.maximumNameLength,
            let name = String(validating: packet.data, as: UTF8.self)
        else { throw .malformedName }
        // A newer call replaces a live one: its handler learns that by the new call's number.
        call = packet.stream
        (isLive, localClosed, remoteClosed, nextMessage) = (true, false, false, 1)
        defer { metadata = nil }
        return .invoked(name: name, metadata: metadata?.call == packet.stream ? metadata?.values ?? [:] : [:])
    }

    private static func failure(_ data: [UInt8]) -> End {
        guard data.count >= 8 else { return .failed(code: 0, text: String(decoding: data, as: UTF8.self)) }
        let code = data.prefix(8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return .failed(code: code, text: String(decoding: data.dropFirst(8), as: UTF8.self))
    }

    private mutating func finish(_ end: End) -> Event {
        isLive = false
        return .ended(end)
    }

    // MARK: - Output

    /// Takes the bytes to send.
    public mutating func takeOutput() -> [UInt8] {
        defer { output = [] }
        return output
    }

    /// Client: starts the next call of this transport.
    public mutating func invoke(_ name: String, metadata: [(key: String, value: String)] = []) {
        precondition(role == .client && !isLive, "one call at a time, started by the client")
        call += 1
        (isLive, localClosed, remoteClosed, nextMessage) = (true, false, false, 1)
        if !metadata.isEmpty { send(.invokeMetadata, DRPCMetadata.encode(metadata)) }
        send(.invoke, Array(name.utf8))
    }

    /// Sends one message. Returns false when the call is over or sending was closed.
    @discardableResult
    public mutating func sendMessage(_ data: [UInt8]) -> Bool {
        guard isLive, !localClosed else { return false }
        send(.message, data)
        return true
    }

    /// Says that we send no more messages; the call is over when the peer has said so, too.
    public mutating func closeSend() {
        guard isLive, !localClosed else { return }
        localClosed = true
        send(.closeSend, [])
        if remoteClosed { isLive = false }
    }

    /// Ends the call.
    public mutating func close() {
        guard isLive else { return }
        isLive = false
        send(.close, [])
    }

    /// Ends the call as cancelled.
    public mutating func cancel() {
        guard isLive else { return }
        isLive = false
        send(.cancel, [], isControl: true)
    }

    /// Ends the call with a failure. The text is cut to 4 KiB.
    public mutating func sendError(code: UInt64, text: String) {
        guard isLive else { return }
        isLive = false
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: code >> UInt64(56 - $0 * 8)) }
        send(.error, bytes + text.utf8.prefix(4_096))
    }

    /// Server: the handler is gone; what the peer still says about this call is ignored.
    public mutating func abandon() { isLive = false }

    private mutating func send(_ kind: DRPCPacket.Kind, _ data: [UInt8], isControl: Bool = false) {
        let packet = DRPCPacket(
            stream: call, message: nextMessage, kind: kind.rawValue, isControl: isControl, data: data)
        nextMessage += 1
        packet.write(into: &output)
    }
}
