// SPDX-License-Identifier: Apache-2.0

// The map of relays, and which of them is home.
extension Engine {
    private static let measurePeriod = Interval.seconds(60)
    /// When the home relay fails: a restart may be over by then, and not all its clients measure at once.
    private static let measurePause = Interval.milliseconds(100)
    /// Least time since the last measurement when the home relay was lost, and while it cannot be reached.
    private static let measureAgain = (lost: Interval.seconds(1), unreachable: Interval.seconds(5))
    private static let resolvePeriod = Interval.seconds(300)

    mutating func setDERPMap(_ map: DERPMap) {
        let old = derpMap
        derpMap = map
        if old != map { hub.notify(.networkChanged) }
        for index in relays.indices.reversed()
        where old.regions[relays[index].region] != map.regions[relays[index].region] {
            closeRelay(index, retry: false)
            relays.remove(at: index)
        }
        resolveAt = now
        measure()
    }

    /// The home relay fails: another one may have to take its place.
    mutating func measureSoon(wasOpen: Bool) {
        let pause = Self.measurePause + Interval(nanoseconds: random.next() % Self.measurePause.nanoseconds)
        let least = wasOpen ? Self.measureAgain.lost : Self.measureAgain.unreachable
        measureAt = min(measureAt, max(now + pause, measuredAt + least))
    }

    /// Asks for the relays' latencies, now and then every minute.
    mutating func measure() {
        measureAt = .never
        measuredAt = now
        // A name that could not be looked up may be found later, or have moved.
        if now >= resolveAt {
            resolveAt = now + Self.resolvePeriod
            hub.notify(.resolveStunServers)
        }
        guard configuration.relayDialer != nil, !derpMap.relayRegionIDs.isEmpty else { return publish() }
        measureAt = now + Self.measurePeriod
        hub.notify(.measureLatencies)
    }

    mutating func takeLatencies(_ found: [Int: RelayLatency], _ reasons: [Int: String]) {
        var report = Netcheck()
        for (region, latency) in found.sorted(by: { $0.key < $1.key }) {
            report.note(region: region, latency: latency.roundTrip, isV4: latency.isV4)
        }
        latencies = report.derpLatency
        forcedWebSocket = reasons
        let avoided = Set(derpMap.regions.values.filter(\.isAvoided).map(\.id))
        let before = homeRegion.current
        let home = homeRegion.choose(
            latencies: found.mapValues(\.roundTrip), relays: derpMap.relayRegionIDs, avoided: avoided,
            scores: derpMap.homeParams?.regionScore ?? [:], now: now)
        if home != before {
            log("home relay chosen", [("region", "\(home)")])
            for link in relays { link.client?.setPreferred(link.region == home) }
        }
        if home != 0 { openRelay(home) }
        publish()
    }
}
