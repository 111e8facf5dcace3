// Without an icon in the page, browsers request one and log a 404.
export const metadata = { title: "Tasks", icons: "data:," };

export default function RootLayout({ children }: LayoutProps<"/">) {
  return (
    <html lang="en">
      <body>{children}</body>
    </html>
  );
}
