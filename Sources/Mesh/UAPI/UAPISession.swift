// SPDX-License-Identifier: Apache-2.0

extension UAPI {
    /// One client's bytes, cut into operations. No I/O: feed `receive`, then take `nextEvent` until nil.
    /// Settings are handed on in pieces while they come, as they would be carried out line by line. Keeps at
    /// most one line, and wipes what it has read: there are keys in it.
    package struct Session: Sendable {
        /// What the client wants.
        package enum Event: Sendable {
            /// Everything about the interface.
            case get
            /// A `set` operation begins: no peer is chosen yet.
            case begin
            /// Settings in order, all of one operation.
            case settings([Setting])
            /// The operation ends; the answer is 0, or the failure that stopped it. Earlier settings stay.
            case end(Failure?)
            /// The client does not speak this protocol: close.
            case refuse(Failure)
        }

        private enum State {
            case idle
            /// After `get=1`: an empty line must follow.
            case get
            /// In an operation, before or after its first peer.
            case set(hasPeer: Bool)
            /// The rest of an operation that has failed already.
            case skip(Failure)
            case refused
        }

        private let limits: Limits
        private var state = State.idle
        private var lines = 0
        private var line: [UInt8] = []
        private var input: [UInt8] = []
        private var position = 0
        private var piece: [Setting] = []
        private var waiting: [Event] = []

        /// A new client.
        package init(limits: Limits = Limits()) {
            self.limits = limits
        }

        /// Whether the client is in the middle of an operation.
        package var isBusy: Bool {
            if case .idle = state { return !line.isEmpty }
            return true
        }

        /// Takes what was read. All events of earlier bytes have been taken.
        package mutating func receive(_ bytes: some Sequence<UInt8>) {
            precondition(input.isEmpty && waiting.isEmpty, "events are taken before more is read")
            input = Array(bytes)
            position = 0
        }

        /// The next thing to do; nil: more bytes are needed.
        package mutating func nextEvent() -> Event? {
            while true {
                if !waiting.isEmpty { return waiting.removeFirst() }
                if piece.count >= limits.settingsPerPiece { return takePiece() }
                if nextLine() {
                    endOfLine()
                    line.wipe()
                } else if waiting.isEmpty {
                    return takePiece()
                }
            }
        }

        private mutating func takePiece() -> Event? {
            guard !piece.isEmpty else { return nil }
            defer { piece = [] }
            return .settings(piece)
        }

        /// Moves bytes to `line` until it is complete. False: they do not suffice.
        private mutating func nextLine() -> Bool {
            if case .refused = state {
                input.wipe()
                return false
            }
            let rest = input[min(position, input.count)...]
            let end = rest.firstIndex(of: 0x0a)
            let part = rest[..<(end ?? rest.endIndex)]
            guard line.count + part.count <= limits.lineBytes else {
                refuse(.lineTooLong)
                return false
            }
            line += part
            guard let end else {
                input.wipe()
                return false
            }
            position = end + 1
            return true
        }

        private mutating func refuse(_ failure: Failure) {
            state = .refused
            input.wipe()
            line.wipe()
            flush(then: .refuse(failure))
        }

        /// Settings first, then what follows them.
        private mutating func flush(then event: Event) {
            if let settings = takePiece() { waiting.append(settings) }
            waiting.append(event)
        }

        private mutating func endOfLine() {
            switch state {
            case .idle: begin()
            case .get:
                guard line.isEmpty else { return refuse(.syntax) }
                state = .idle
                waiting.append(.get)
            case .set(let hasPeer):
                guard !line.isEmpty else {
                    state = .idle
                    return flush(then: .end(nil))
                }
                take(hasPeer: hasPeer)
            case .skip(let failure):
                guard line.isEmpty else { return count() }
                state = .idle
                waiting.append(.end(failure))
            case .refused: break
            }
        }

        private mutating func begin() {
            lines = 0
            switch String(decoding: line, as: UTF8.self) {
            case "get=1": state = .get
            case "set=1":
                state = .set(hasPeer: false)
                waiting.append(.begin)
            default: refuse(.syntax)
            }
        }

        private mutating func count() {
            lines += 1
            if lines > limits.linesPerOperation { refuse(.tooManyLines) }
        }

        private mutating func take(hasPeer: Bool) {
            count()
            guard case .set = state else { return }
            do throws(Failure) {
                let setting = try Setting(line: line[...])
                switch setting {
                case .peer: state = .set(hasPeer: true)
                default: guard setting.isOfPeer == hasPeer else { throw .unknownKey }
                }
                piece.append(setting)
            } catch {
                if let settings = takePiece() { waiting.append(settings) }
                state = .skip(error)
            }
        }
    }
}
