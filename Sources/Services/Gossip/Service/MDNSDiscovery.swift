// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import Logging
import MDNSCore
import NIOCore

/// Runs `MDNSMachine`: carries out what it wants on the sockets, and keeps its time. Confined to its
/// event loop.
package final class MDNSDiscovery {
    /// Who is found and lost.
    package var onNews: (DiscoveryNews) -> Void = { _ in }

    private var machine: MDNSMachine
    private var random: RandomSource
    private let sockets: [MulticastSocket]
    private let loop: any EventLoop
    private var effects: [MDNSEffect] = []
    private var timer: Scheduled<Void>?
    private var timerAt: MonotonicInstant?

    package init(
        configuration: MDNSConfiguration, sockets: [MulticastSocket], loop: any EventLoop
    ) {
        machine = MDNSMachine(configuration: configuration)
        var generator = SystemRandomNumberGenerator()
        random = RandomSource(seed: generator.next())
        self.sockets = sockets
        self.loop = loop
    }

    package var peers: [MDNSPeer] { machine.peers }
    package var instanceName: String { machine.instanceName }

    package func use(_ choice: InterfaceChoice) {
        for socket in sockets { socket.join(choice.interfaces) }
        step(.port(choice.port))
        step(.interfaces(choice.interfaces))
    }

    package func step(_ input: MDNSInput) {
        machine.step(input, now: now(), random: &random, into: &effects)
        let done = effects
        effects.removeAll(keepingCapacity: true)
        for effect in done {
            switch effect {
            case .send(let bytes, let interface, let destination):
                for socket in sockets {
                    socket.send(bytes, interface: interface, to: destination)
                }
            case .found(let peer): onNews(.found(DiscoveredNode(peer)))
            case .lost(let endpoint): onNews(.lost(endpoint))
            }
        }
        setTimer()
    }

    private func now() -> MonotonicInstant {
        MonotonicInstant(nanoseconds: NIODeadline.now().uptimeNanoseconds)
    }

    private func setTimer() {
        guard machine.deadline != timerAt else { return }
        timer?.cancel()
        timerAt = machine.deadline
        guard let deadline = timerAt else { return }
        let box = NIOLoopBound(self, eventLoop: loop)
        timer = loop.scheduleTask(deadline: .uptimeNanoseconds(deadline.nanoseconds)) {
            box.value.timerAt = nil
            box.value.step(.timeout)
        }
    }

    /// Says goodbye; nothing is done after it.
    package func stop() {
        step(.stop)
        timer?.cancel()
    }
}
