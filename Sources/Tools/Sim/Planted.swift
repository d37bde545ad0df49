// SPDX-License-Identifier: GPL-2.0-or-later

#if ASPEN_TEST_BUILD
    import ArgumentParser
    import RaftCore

    /// A planted bug by its name on the command line.
    struct Planted: ExpressibleByArgument {
        var bug: PlantedBug

        init?(argument: String) {
            guard let bug = PlantedBug(rawValue: argument) else { return nil }
            self.bug = bug
        }

        static var allValueStrings: [String] { PlantedBug.allCases.map(\.rawValue) }
    }
#endif
