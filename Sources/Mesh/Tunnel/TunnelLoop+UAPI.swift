// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// What `wg` says and asks, carried out between two bursts.
extension TunnelLoop: UAPI.Interface {
    package mutating func rebind(toPort port: UInt16) throws(UAPI.Failure) {
        do throws(SystemError) {
            try setListenPort(port)
        } catch {
            throw error.isAddressInUse ? .portInUse : .system(error.code)
        }
    }

    package mutating func remark(_ mark: UInt32) throws(UAPI.Failure) {
        do throws(SystemError) {
            try setFirewallMark(mark)
        } catch {
            throw .system(error.code)
        }
    }

    package func place(of peer: WireGuard.PeerIndex) -> UAPI.Endpoint? {
        guard let address = whereabouts(of: peer)?.remote else { return nil }
        let scope = address.scope == 0 ? "" : InterfaceName.name(address.scope)
        return UAPI.Endpoint(SocketAddress(address), scope: scope)
    }

    package mutating func setPlace(
        of peer: WireGuard.PeerIndex, _ endpoint: UAPI.Endpoint
    ) throws(UAPI.Failure) {
        var address = endpoint.address.kernel
        if !endpoint.scope.isEmpty {
            guard let number = InterfaceName.number(endpoint.scope) else { throw .badValue }
            address.scope = number
        }
        setPlace(Place(remote: address), of: peer)
    }

    package mutating func forgetPlace(of peer: WireGuard.PeerIndex) { setPlace(nil, of: peer) }
}

extension WireGuardTunnel: ConfigurableTunnel {
    package func apply(
        _ settings: [UAPI.Setting], _ cursor: UAPI.Cursor
    ) -> (UAPI.Cursor, UAPI.Failure?) {
        let result = perform { loop -> (UAPI.Cursor, UAPI.Failure?) in
            var cursor = cursor
            do throws(UAPI.Failure) {
                try UAPI.apply(settings, &cursor, to: &loop, now: loop.now)
                return (cursor, nil)
            } catch {
                return (cursor, error)
            }
        }
        return result ?? (cursor, .ended)
    }

    package func finish(_ cursor: UAPI.Cursor) {
        _ = perform { loop in
            var cursor = cursor
            UAPI.finish(&cursor, on: &loop, now: loop.now)
        }
    }

    package func status() -> UAPI.Status? {
        perform { loop in
            let wall = Clock.wallTime()
            // Both clocks are read at the same moment, so that a handshake's time stays the same.
            let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            return UAPI.status(
                of: loop, now: now,
                wallTime: WireGuard.WallTime(
                    seconds: UInt64(max(0, wall.seconds)), nanoseconds: wall.nanoseconds))
        }
    }
}
