// SPDX-License-Identifier: Apache-2.0

/// `/login` and `/cli-auth`: a form for e-mail and password. Afterwards the page goes to where `redirect` points, or,
/// for `/cli-auth`, shows a new key to paste into a program: command line and editors open that address.
enum LoginPage {
    static func register(_ routes: RouteTable) {
        routes.root(.get, "/login", .anonymous) { _ in page.reply }
        routes.root(.get, "/cli-auth", .anonymous) { _ in page.reply }
    }

    static let page = Page(
        title: "Log in",
        body: """
            <form id="form">
            <h1>Log in</h1>
            <p class="dim" id="why">With the e-mail address and password of your account.</p>
            <label>E-mail <input id="email" type="email" autocomplete="username" required autofocus></label>
            <label>Password <input id="password" type="password" autocomplete="current-password" required></label>
            <button>Log in</button>
            <p class="bad" id="bad" role="alert"></p>
            </form>
            <section id="done" hidden>
            <h1>Your session token</h1>
            <p class="dim">Paste it where you were asked for it. Treat it like a password: it lets in whoever
            has it.</p>
            <div class="key" id="key" tabindex="0"></div>
            <button id="copy" type="button">Copy</button>
            </section>
            <noscript><p class="bad">This page needs JavaScript. Without it: <code>coder login</code> in a terminal
            asks for e-mail and password, too.</p></noscript>
            """,
        script: script)

    // The cookie that logging in sets cannot be read by scripts and changes nothing by itself: the key is made with
    // the token of the answer.
    private static let script = """
        const $ = id => document.getElementById(id);
        const asked = new URLSearchParams(location.search).get('redirect') || '';
        const base = new URL(asked, location.origin);
        const target = asked.startsWith('/') && base.origin === location.origin ? base.pathname + base.search : '/';
        const wantsKey = location.pathname === '/cli-auth' || target.split('?')[0] === '/cli-auth';
        if (wantsKey) $('why').textContent = 'A program on your machine asks to act for you.';
        async function post(path, body, token) {
          const headers = {'Content-Type': 'application/json'};
          if (token) headers['Coder-Session-Token'] = token;
          const answer = await fetch('/api/v2/' + path, {method: 'POST', headers, body: JSON.stringify(body)});
          const json = await answer.json().catch(() => ({}));
          if (answer.ok) return json;
          const field = (json.validations || [])[0];
          throw new Error(field ? field.field + ': ' + field.detail : json.message || 'HTTP ' + answer.status);
        }
        $('form').addEventListener('submit', async event => {
          event.preventDefault();
          const button = event.submitter || $('form').querySelector('button');
          button.disabled = true;
          $('bad').textContent = '';
          try {
            const login = await post('users/login', {email: $('email').value, password: $('password').value});
            $('password').value = '';
            if (!wantsKey) return location.assign(target);
            $('key').textContent = (await post('users/me/keys', {}, login.session_token)).key;
            $('form').hidden = true;
            $('done').hidden = false;
            $('copy').focus();
          } catch (error) {
            $('bad').textContent = error instanceof TypeError ? 'The server does not answer.' : error.message;
            $('password').select();
          }
          button.disabled = false;
        });
        $('copy').addEventListener('click', async () => {
          getSelection().selectAllChildren($('key'));
          try { await navigator.clipboard.writeText($('key').textContent); } catch { document.execCommand('copy'); }
          $('copy').textContent = 'Copied';
        });
        """
}
