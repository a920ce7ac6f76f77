// SPDX-License-Identifier: Apache-2.0

// The conversation by HTTP with a gateway that was found by UPnP: its description, its address, the mapping.
extension PortMapper {
    mutating func request(_ step: HTTPStep, at port: UInt16, _ bytes: [UInt8]) {
        guard let network else { return }
        steps[nextStep] = step
        push(.http(id: nextStep, SocketAddress(network.gateway, port: port), bytes))
        nextStep += 1
    }

    /// Takes the whole answer to an HTTP request; nil when there was none.
    package mutating func receiveHTTP(_ id: UInt64, _ bytes: [UInt8]?, now: Instant) {
        guard let step = steps.removeValue(forKey: id), let network, mapping == nil || wantsUPnP else {
            return
        }
        guard let bytes, let answer = UPnP.answer(bytes) else {
            badAnswers += 1
            return
        }
        let body = answer.body[...]
        switch step {
        case .description(let location):
            guard answer.status == 200, let service = UPnP.service(inDescription: answer.body, at: location)
            else {
                badAnswers += 1
                return
            }
            request(
                .address(service), at: service.control.port,
                UPnP.call("GetExternalIPAddress", [:], of: service, gateway: network.gateway))
        case .address(let service):
            guard answer.status == 200, let text = UPnP.element("NewExternalIPAddress", of: body),
                let ip = IPAddress(text)
            else {
                badAnswers += 1
                return
            }
            map(
                service, external: ip, port: mapping?.external.port ?? network.port, conflicts: 0,
                lease: limits.lifetimeSeconds)
        case .map(let service, let ip, let port, let conflicts, let lease):
            if answer.status == 200 {
                let reserved = UPnP.element("NewReservedPort", of: body).flatMap { UInt16($0) }
                take(.upnp, SocketAddress(ip, port: reserved ?? port), limits.lifetimeSeconds, now)
                if mapping?.service == .upnp { mapping?.upnp = service }
                return
            }
            switch UPnP.element("errorCode", of: body).flatMap({ Int($0) }) {
            case 718 where conflicts < limits.conflicts:  // somebody else has the port
                let other = UInt16(1_024 + random.next() % 64_000)
                map(service, external: ip, port: other, conflicts: conflicts + 1, lease: lease)
            case 725 where lease != 0:  // only leases without end
                map(service, external: ip, port: port, conflicts: conflicts, lease: 0)
            default: badAnswers += 1
            }
        }
    }

    private mutating func map(
        _ service: UPnP.Service, external: IPAddress, port: UInt16, conflicts: Int, lease: UInt32
    ) {
        guard let network else { return }
        let call = UPnP.call(
            service.choosesPort ? "AddAnyPortMapping" : "AddPortMapping",
            [
                "NewRemoteHost": "", "NewExternalPort": "\(max(port, 1_024))", "NewProtocol": "UDP",
                "NewInternalPort": "\(network.port)", "NewInternalClient": "\(network.own)",
                "NewEnabled": "1",
                "NewPortMappingDescription": "coder", "NewLeaseDuration": "\(lease)",
            ], of: service, gateway: network.gateway)
        request(
            .map(service, external: external, port: max(port, 1_024), conflicts: conflicts, lease: lease),
            at: service.control.port, call)
    }
}
