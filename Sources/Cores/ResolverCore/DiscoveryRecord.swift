// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import DNSWire

/// Where an endpoint can be dialled, as DNS tells it in the form that iroh has published: TXT records
/// at `_iroh.<endpoint id in z-base-32>.<origin>`, each one attribute `key=value`. `addr=` has addresses
/// with ports, separated by spaces. `relay=` and all other attributes are ignored.
///
/// DNS proves nothing: an address found is worth an attempt to connect, where the key has to be shown.
package struct DiscoveryRecord: Equatable, Sendable {
    package var endpoint: EndpointID
    /// To dial: "192.0.2.1:7700", "[2001:db8::1]:7700"; at most `Limits.addressesMax`.
    package var addresses: [String]

    package static let label = Array("_iroh".utf8)

    package init(endpoint: EndpointID, addresses: [String]) {
        self.endpoint = endpoint
        self.addresses = addresses
    }

    /// - Returns: nil when the origin is too long for a name below it.
    package static func name(of endpoint: EndpointID, origin: DNSName) -> DNSName? {
        origin.child(Array(ZBase32.encode(endpoint.bytes).utf8))?.child(label)
    }

    /// The endpoint that a name is about; nil if it is no name of this form.
    package static func endpoint(of name: DNSName, origin: DNSName) -> EndpointID? {
        guard name.firstLabel == label, let below = name.parent, below.parent == origin,
            let bytes = ZBase32.decode(String(decoding: below.firstLabel, as: UTF8.self))
        else { return nil }
        return EndpointID(bytes: bytes)
    }

    /// What the TXT records at the endpoint's name say; nil if they name no address.
    package init?(_ endpoint: EndpointID, records: [DNSRecord]) {
        self.endpoint = endpoint
        addresses = []
        for record in records {
            guard case .text(let strings) = record.data else { continue }
            // Several strings of one record are one text.
            let text = String(decoding: strings.joined(), as: UTF8.self)
            guard let equals = text.firstIndex(of: "="), text[..<equals] == "addr" else { continue }
            for word in text[text.index(after: equals)...].split(separator: " ") {
                guard addresses.count < Limits.addressesMax,
                    let (address, port) = IPAddress.parse(word), address.isUnicast
                else { continue }
                let written = address.text(port: port)
                if !addresses.contains(written) { addresses.append(written) }
            }
        }
        if addresses.isEmpty { return nil }
    }

    /// What to publish below `origin`; nil as with `name(of:origin:)`.
    /// - Parameter ttl: seconds.
    package func records(origin: DNSName, ttl: UInt32) -> [DNSRecord]? {
        guard let name = Self.name(of: endpoint, origin: origin) else { return nil }
        return addresses.prefix(Limits.addressesMax).map {
            DNSRecord(name, ttl: ttl, .text([Array("addr=\($0)".utf8)]))
        }
    }
}
