// A new profile without the pages and questions of a first start.
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionPolicyBypassNotification", true);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("browser.tabs.firefox-view", false);
user_pref("trailhead.firstrun.didSeeAboutWelcome", true);
user_pref("app.normandy.enabled", false);
user_pref("toolkit.cosmeticAnimations.enabled", false);
user_pref("browser.warnOnQuitShortcut", false);
