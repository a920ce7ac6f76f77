// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import Testing

/// Names in `/tmp` that another user of the machine may have taken first.
@Suite struct PrivateFilesTests {
    private let folder: String

    init() {
        var template = Array("/tmp/private-test.XXXXXX".utf8CString)
        folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    @Test func aDirectoryOfOursIsUsed() {
        #expect(PrivateFiles.directory("\(folder)/data") == "\(folder)/data")
        #expect(PrivateFiles.directory("\(folder)/data") == "\(folder)/data")
        var status = stat()
        #expect(stat("\(folder)/data", &status) == 0 && status.st_mode & 0o777 == 0o700)
    }

    @Test(arguments: ["open", "link", "file"]) func anotherOneIsNot(kind: String) throws {
        let path = "\(folder)/\(kind)"
        switch kind {
        case "open":
            mkdir(path, 0o700)
            chmod(path, 0o777)
        case "link": symlink(folder, path)
        default: close(open(path, O_WRONLY | O_CREAT, 0o600))
        }
        let found = try #require(PrivateFiles.directory(path))
        #expect(found != path && found.hasPrefix("\(path)-"))
    }

    @Test func aLogIsNotWrittenThroughALink() {
        let target = "\(folder)/target", link = "\(folder)/link.log"
        close(open(target, O_WRONLY | O_CREAT, 0o600))
        symlink(target, link)
        #expect(PrivateFiles.openLog(link) == -1)
        mkfifo("\(folder)/fifo", 0o600)
        #expect(PrivateFiles.openLog("\(folder)/fifo") == -1)
        let number = PrivateFiles.openLog("\(folder)/new.log")
        #expect(number >= 0)
        close(number)
    }
}
