// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// Answer of `/api/v0/netcheck`: upstream's `healthsdk.AgentNetcheckReport`, which its `coder ping` reads.
package struct AgentNetcheck: Encodable {
    package struct Warning: Encodable {
        package var code: String
        package var message: String
    }

    /// `tailcfg.NetInfo`, as far as the node tells; what is absent is unknown.
    package struct NetInfo: Encodable {
        package var PreferredDERP: Int
        /// Seconds by `<region>-v4` and `<region>-v6`.
        package var DERPLatency: [String: Double]
        /// Why a region is only reached by WebSocket.
        package var DERPForcedWebsocket: [String: String]?
        package var WorkingUDP: Bool
        package var WorkingIPv6: Bool
        package var MappingVariesByDestIP: Bool?
        /// Ours: whether direct paths are switched off here.
        package var DirectBlocked: Bool?
    }

    package struct Interface: Encodable, Equatable {
        package var name: String
        package var mtu: Int
        package var addresses: [String]

        package init(name: String, mtu: Int, addresses: [String]) {
            self.name = name
            self.mtu = mtu
            self.addresses = addresses
        }
    }

    package struct Interfaces: Encodable {
        package var severity: String
        package var warnings: [Warning]
        package var dismissed = false
        package var interfaces: [Interface]
    }

    package var severity: String
    package var warnings: [Warning] = []
    package var dismissed = false
    package var net_info: NetInfo?
    package var interfaces: Interfaces

    /// 1,378 bytes: below it full packets of the tunnel do not fit.
    private static let safeMTU = 1_378

    /// The state of a node whose home region is `home`; no node: nil.
    package init(home: Int?, latencies: [String: Double], forced: [Int: String], interfaces: [Interface]) {
        severity = home ?? 0 != 0 ? "ok" : "error"
        net_info = home.map { home in
            NetInfo(
                PreferredDERP: home, DERPLatency: latencies,
                DERPForcedWebsocket: forced.isEmpty
                    ? nil : Dictionary(uniqueKeysWithValues: forced.map { ("\($0.key)", $0.value) }),
                WorkingUDP: !latencies.isEmpty, WorkingIPv6: latencies.keys.contains { $0.hasSuffix("-v6") })
        }
        let narrow = interfaces.filter { 1..<Self.safeMTU ~= $0.mtu }
        self.interfaces = Interfaces(
            severity: narrow.isEmpty ? "ok" : "warning",
            warnings: narrow.map {
                Warning(
                    code: "EIF01",
                    message: "\($0.name) has MTU \($0.mtu), below \(Self.safeMTU): direct paths may suffer")
            },
            interfaces: interfaces)
    }

    init(_ own: OwnNode?, _ status: NodeStatus?) {
        self.init(
            home: own?.homeRegion, latencies: own?.latencies ?? [:], forced: own?.forcedWebSocket ?? [:],
            interfaces: Self.interfaces())
        guard let network = status?.network, var info = net_info else { return }
        info.WorkingUDP = network.hasUDP ?? info.WorkingUDP
        info.MappingVariesByDestIP = network.mappingVaries
        info.DirectBlocked = network.blocksDirect
        net_info = info
    }

    /// Those that are up, the loopback left out, in the kernel's order.
    private static func interfaces() -> [Interface] {
        var all: [Interface] = []
        // An agent that may not list them says that there are none.
        for entry in (try? InterfaceAddress.all()) ?? [] where entry.isUp && !entry.isLoopback {
            let address = entry.address
            let ip =
                address.isV4
                ? IPAddress(v4: UInt32(truncatingIfNeeded: address.low))
                : IPAddress(high: address.high, low: address.low)
            if let index = all.firstIndex(where: { $0.name == entry.interface }) {
                all[index].addresses.append(ip.description)
            } else {
                all.append(
                    Interface(name: entry.interface, mtu: mtu(entry.interface), addresses: [ip.description]))
            }
        }
        return all
    }

    /// 0: not known.
    private static func mtu(_ name: String) -> Int {
        let text = FileBytes.read("/sys/class/net/\(name)/mtu", limit: 4_096) ?? []
        return Int(String(decoding: text.prefix { $0 != 10 }, as: UTF8.self)) ?? 0
    }
}
