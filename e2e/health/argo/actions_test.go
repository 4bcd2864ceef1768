// What Argo CD's buttons do to an ImageBuild.
package argo

import (
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/argoproj/argo-cd/v3/util/lua"
)

func TestWhichButtonsThereAre(t *testing.T) {
	type button struct {
		Name     string `json:"name"`
		Disabled bool   `json:"disabled"`
	}
	var tests struct {
		DiscoveryTests []struct {
			InputPath string   `json:"inputPath"`
			Result    []button `json:"result"`
		} `json:"discoveryTests"`
	}
	if err := yaml.UnmarshalStrict([]byte(text(t, "actions/action_test.yaml")), &tests); err != nil {
		t.Fatal(err)
	}
	if len(tests.DiscoveryTests) == 0 {
		t.Fatal("no tests")
	}
	scripts := []string{text(t, "actions/discovery.lua")}
	for _, test := range tests.DiscoveryTests {
		t.Run(test.InputPath, func(t *testing.T) {
			actions, err := lua.VM{}.ExecuteResourceActionDiscovery(object(t, test.InputPath), scripts)
			if err != nil {
				t.Fatal(err)
			}
			found := map[button]bool{}
			for _, action := range actions {
				found[button{action.Name, action.Disabled}] = true
				// Each button has its script.
				text(t, filepath.Join("actions", action.Name, "action.lua"))
			}
			if len(found) != len(test.Result) || slices.ContainsFunc(test.Result, func(b button) bool { return !found[b] }) {
				t.Errorf("expected %v, found %v", test.Result, found)
			}
		})
	}
}

func TestWhatTheButtonsDo(t *testing.T) {
	for _, test := range []struct {
		action, input string
		path          []string
		want          any
	}{
		{"rebuild", "succeeded", []string{"metadata", "annotations", "kiln.build/rebuild"}, "argocd-after-run-1"},
		{"rebuild", "never-seen", []string{"metadata", "annotations", "kiln.build/rebuild"}, "argocd-after-run-0"},
		{"cancel", "running", []string{"metadata", "annotations", "kiln.build/cancel"}, "1"},
		{"suspend", "running", []string{"spec", "suspend"}, true},
		{"resume", "suspended", []string{"spec", "suspend"}, false},
	} {
		t.Run(test.action+" "+test.input, func(t *testing.T) {
			script := text(t, filepath.Join("actions", test.action, "action.lua"))
			before := object(t, filepath.Join("testdata", test.input+".yaml"))
			changed, err := lua.VM{}.ExecuteResourceAction(before, script, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(changed) != 1 {
				t.Fatalf("expected 1 object, found %d", len(changed))
			}
			found, _, err := unstructured.NestedFieldNoCopy(changed[0].UnstructuredObj.Object, test.path...)
			if err != nil || found != test.want {
				t.Errorf("expected %v, found %v (%v)", test.want, found, err)
			}
		})
	}
}
