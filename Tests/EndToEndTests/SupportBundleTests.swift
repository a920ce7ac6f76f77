// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

extension EndToEndTests {
    /// The whole of `coder support bundle`: what is in it, and that the session's token is not.
    @Test func aSupportBundleTellsNoSecrets() async throws {
        let path = lab.folder.appending(path: "bundle.zip").path
        let words = ["support", "bundle", "dev", "--yes", "-O", path]
        let made = try await lab.coder(words, timeout: 90)
        #expect(made.status == 0 && made.errorText.contains("Wrote support bundle to \(path)"), "\(made)")
        let script = """
            import json, os, stat, sys, zipfile
            assert stat.S_IMODE(os.stat(sys.argv[1]).st_mode) == 0o600
            z = zipfile.ZipFile(sys.argv[1])
            assert z.testzip() is None
            token = open(os.environ['CODER_CONFIG_DIR'] + '/session').read().strip()
            assert len(token) > 20
            for name in z.namelist():
                text = z.read(name).decode()
                assert token not in text, name
                if name.endswith('.json'): json.loads(text)
            def read(name): return json.loads(z.read(name))
            assert read('workspace/workspace.json')['name'] == 'dev'
            assert read('agent/agent.json')['status'] == 'connected'
            assert read('deployment/buildinfo.json')['version']
            assert {r['side'] for r in read('agent/path_recordings.json')['recordings']} == {'client', 'agent'}
            assert read('agent/ping_result.json')['latency_ms'] > 0
            assert read('network/netcheck.json')['derp']['severity']
            assert read('network/interfaces.json')['interfaces']
            print(' '.join(sorted(z.namelist())), z.read('logs.txt').decode().replace('\\n', '; '))
            """
        let outcome = try await lab.onClient(["python3", "-c", script, path]).finish(timeout: 30)
        #expect(outcome.status == 0, "\(outcome)")
        let again = try await lab.coder(words, timeout: 30)
        #expect(again.status == 1 && again.errorText.contains("cannot write"), "\(again)")
    }
}
