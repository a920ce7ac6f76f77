// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import HTTPTransport
internal import Mesh

/// Builds the DERP map from the options: other people's relays, our own, STUN servers. `coordinator.md` §8.1.
enum DERPMapBuilder {
    /// Why there is no usable map.
    struct Unusable: Error, CustomStringConvertible {
        var description: String
    }

    /// Longest map that is read. The public one has 40 KB.
    private static let maximumMapBytes = 4 << 20

    /// `stunPort`, `secondPort`: of our own STUN responder, if they could be opened.
    static func map(
        _ options: ServerOptions, accessURL: AccessURL, stunPort: Int?, secondPort: Int? = nil
    ) async throws -> DERPMap {
        var map = try await others(options)
        let id = options.derpRegionID
        if options.derpEnable {
            guard (1...65_535).contains(id) else {
                throw Unusable(description: "--derp-server-region-id is out of range")
            }
            guard map.regions[id] == nil else {
                throw Unusable(
                    description:
                        "the DERP map that was configured has a region \(id), as the relay inside the"
                        + " server: choose another --derp-server-region-id")
            }
            var node = DERPMap.Node(name: "\(id)b", regionID: id, hostName: accessURL.host)
            node.derpPort = accessURL.port
            node.forcesHTTP = !accessURL.isSecure
            node.stunPort = stunPort ?? -1
            var nodes = [node]
            if let secondPort {
                var second = DERPMap.Node(name: "\(id)stun0", regionID: id, hostName: accessURL.host)
                second.isSTUNOnly = true
                second.stunPort = secondPort
                nodes.append(second)
            }
            map.regions[id] = .init(
                id: id, code: options.derpRegionCode, name: options.derpRegionName, isEmbeddedRelay: true,
                nodes: nodes)
        }
        guard !map.relayRegionIDs.isEmpty else {
            throw Unusable(
                description: "no relay: --derp-server-enable is false, and neither --derp-config-url nor"
                    + " --derp-config-path names one")
        }
        if options.blockDirect { return map.withoutSTUN }
        for (index, address) in options.stunAddresses.enumerated() {
            guard !options.stunAddresses.contains("disable") else { break }
            try add(address, region: id + 1 + index, to: &map)
        }
        return map
    }

    private static func add(_ address: String, region: Int, to map: inout DERPMap) throws {
        guard let (host, port) = HostPort.split(address), !host.isEmpty else {
            throw Unusable(description: "--derp-server-stun-addresses: \"\(address)\" is not host:port")
        }
        guard map.regions[region] == nil else {
            throw Unusable(
                description:
                    "the DERP map that was configured has a region \(region), which a STUN server needs")
        }
        var node = DERPMap.Node(name: "\(region)stun0", regionID: region, hostName: host)
        node.isSTUNOnly = true
        node.stunPort = port ?? 3478
        map.regions[region] = .init(
            id: region, code: "coder_stun_\(region)", name: "Coder STUN \(region)", nodes: [node])
    }

    /// The map of `--derp-config-path` or `--derp-config-url`, read once; empty when there is neither.
    private static func others(_ options: ServerOptions) async throws -> DERPMap {
        let bytes: [UInt8]
        let source: String
        switch (options.derpConfigPath.isEmpty, options.derpConfigURL.isEmpty) {
        case (true, true): return DERPMap()
        case (false, false):
            throw Unusable(description: "--derp-config-url and --derp-config-path exclude each other")
        case (false, true):
            source = options.derpConfigPath
            do { bytes = try file(source) } catch {
                throw Unusable(description: "--derp-config-path \(source): \(error)")
            }
        case (true, false):
            source = options.derpConfigURL
            bytes = try await download(source, options)
        }
        do {
            let map = try JSONDecoder().decode(DERPMap.self, from: Data(bytes))
            guard map.regions.allSatisfy({ (1...65_535).contains($0.key) && $0.key == $0.value.id }) else {
                throw Unusable(description: "a region's number is not that of its entry, or out of range")
            }
            return map
        } catch {
            throw Unusable(description: "\(source) is not a DERP map: \(error)")
        }
    }

    private static func file(_ path: String) throws -> [UInt8] {
        var reader = try FileReader(path: path)
        return try reader.read(upTo: maximumMapBytes)
    }

    private static func download(_ text: String, _ options: ServerOptions) async throws -> [UInt8] {
        guard let url = HTTPURL(text) else {
            throw Unusable(description: "--derp-config-url \"\(text)\" is not an http or https URL")
        }
        let http = HTTPClient(configuration: .init(environment: options.environment))
        let result: Result<HTTPResponse, any Error>
        do {
            result = .success(try await http.request("GET", url, bodyLimit: maximumMapBytes))
        } catch {
            result = .failure(error)
        }
        await http.shutDown()
        let response = try result.get()
        guard response.status == 200 else {
            throw Unusable(description: "--derp-config-url \(text): status \(response.status)")
        }
        return response.body
    }
}

extension DERPMap {
    /// Only what relays: for deployments where nobody may connect directly.
    var withoutSTUN: DERPMap {
        var map = self
        for (id, region) in regions {
            var region = region
            region.nodes = region.nodes.filter { !$0.isSTUNOnly }
            for index in region.nodes.indices { region.nodes[index].stunPort = -1 }
            map.regions[id] = region.nodes.isEmpty ? nil : region
        }
        return map
    }
}
